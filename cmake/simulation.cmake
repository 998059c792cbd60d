# The simulator: the core's own sources compiled once more, with KVSTORE_SIMULATION, and the worlds
# of native/sim around them. In this build alone production code has switches that the simulator
# may turn (native/base/variant.hpp); nothing of it is in a wheel.
set(simulation_sources ${core_sources})
list(FILTER simulation_sources EXCLUDE REGEX "/native/api/")
# The locks of others take part in experiments only.
file(GLOB world_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/sim/*.cpp
  ${PROJECT_SOURCE_DIR}/native/lock/baselines/*.cpp)

add_library(kvstore_core_simulation STATIC EXCLUDE_FROM_ALL
  ${simulation_sources} ${world_sources})
target_compile_definitions(kvstore_core_simulation PUBLIC KVSTORE_SIMULATION)
target_link_libraries(kvstore_core_simulation PRIVATE kvstore_options PUBLIC Threads::Threads)
target_include_directories(kvstore_core_simulation PUBLIC ${PROJECT_SOURCE_DIR}/native)
target_include_directories(kvstore_core_simulation SYSTEM PUBLIC
  ${PROJECT_SOURCE_DIR}/native/third_party ${PROJECT_BINARY_DIR}/generated)

add_executable(kvstore_simulate ${PROJECT_SOURCE_DIR}/native/simulate/main.cpp)
target_link_libraries(kvstore_simulate PRIVATE kvstore_core_simulation kvstore_options)
add_executable(kvstore_simulate_locks ${PROJECT_SOURCE_DIR}/native/simulate/locks.cpp)
target_link_libraries(kvstore_simulate_locks PRIVATE kvstore_core_simulation kvstore_options)
add_executable(kvstore_simulate_caches ${PROJECT_SOURCE_DIR}/native/simulate/caches.cpp)
target_link_libraries(kvstore_simulate_caches PRIVATE kvstore_core_simulation kvstore_options)

if(DOCTEST_INCLUDE_DIR)
  file(GLOB simulation_tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/sim/*.cpp)
  add_executable(kvstore_simulation_tests EXCLUDE_FROM_ALL
    ${PROJECT_SOURCE_DIR}/cmake/doctest_main.cpp ${simulation_tests})
  target_include_directories(kvstore_simulation_tests PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(kvstore_simulation_tests SYSTEM PRIVATE ${DOCTEST_INCLUDE_DIR})
  target_link_libraries(kvstore_simulation_tests PRIVATE kvstore_core_simulation kvstore_options)
endif()
