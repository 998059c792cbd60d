# kvstore_core: every layer of the native core in one static library. Includes start at native/.
#
# A build of a part: -DKVSTORE_LAYERS="base;fabric;fabric/cpu" -DKVSTORE_TESTED=fabric.
set(KVSTORE_LAYERS "" CACHE STRING "Folders of native/ that make up the core; empty: all")
# Not a default of the cache entry, which a build tree would remember when a layer comes or goes.
set(core_layers ${KVSTORE_LAYERS})
if(NOT core_layers)
  set(core_layers base layout coro fabric fabric/cpu fabric/sim alloc index messages lock cache
    store node api)
endif()
set(core_sources)
foreach(layer IN LISTS core_layers)
  file(GLOB layer_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/${layer}/*.cpp)
  list(APPEND core_sources ${layer_sources})
endforeach()

configure_file(native/version.hpp.in ${PROJECT_BINARY_DIR}/generated/version.hpp @ONLY)

if(core_sources)
  add_library(kvstore_core STATIC ${core_sources})
  target_link_libraries(kvstore_core PRIVATE kvstore_options PUBLIC Threads::Threads)
  set(core_scope PUBLIC)
else()
  add_library(kvstore_core INTERFACE)
  set(core_scope INTERFACE)
endif()
target_include_directories(kvstore_core ${core_scope} ${PROJECT_SOURCE_DIR}/native)
target_include_directories(kvstore_core SYSTEM ${core_scope}
  ${PROJECT_SOURCE_DIR}/native/third_party ${PROJECT_BINARY_DIR}/generated)
