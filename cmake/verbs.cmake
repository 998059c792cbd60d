# kvstore/_verbs.so: the verbs fabric, where libibverbs' headers are (the system's, or those that
# `python scripts/debs.py libibverbs-dev` unpacks). It is loaded when it is wanted; nothing else is
# linked to libibverbs.
set(debs_root ${PROJECT_SOURCE_DIR}/build/debs/root/usr)
find_path(IBVERBS_INCLUDE_DIR infiniband/verbs.h HINTS ${debs_root}/include)
find_library(IBVERBS_LIBRARY ibverbs
  HINTS ${debs_root}/lib/${CMAKE_LIBRARY_ARCHITECTURE} ${debs_root}/lib/x86_64-linux-gnu)

if(IBVERBS_INCLUDE_DIR AND IBVERBS_LIBRARY)
  file(GLOB verbs_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/fabric/verbs/*.cpp)
  add_library(kvstore_verbs MODULE ${verbs_sources})
  target_include_directories(kvstore_verbs SYSTEM PRIVATE ${IBVERBS_INCLUDE_DIR})
  target_link_libraries(kvstore_verbs PRIVATE kvstore_core kvstore_options ${IBVERBS_LIBRARY})
  set_target_properties(kvstore_verbs PROPERTIES PREFIX "" OUTPUT_NAME _verbs)
  set(verbs_exports ${PROJECT_SOURCE_DIR}/cmake/verbs_exports.map)
  target_link_options(kvstore_verbs PRIVATE
    -Wl,--gc-sections -Wl,--version-script=${verbs_exports})
  set_target_properties(kvstore_verbs PROPERTIES LINK_DEPENDS ${verbs_exports})
  if(SKBUILD_STATE STREQUAL "editable")
    set_target_properties(kvstore_verbs PROPERTIES
      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_SOURCE_DIR}/kvstore)
  elseif(KVSTORE_BUILD_PYTHON)
    target_link_options(kvstore_verbs PRIVATE -Wl,--strip-debug)
    install(TARGETS kvstore_verbs LIBRARY DESTINATION kvstore)
  endif()
  if(KVSTORE_BUILD_TESTS)
    # The client's own part of the path, over a stand-in for libibverbs and the device: the fabric
    # as a library for the store, and linked to a program that drives it.
    set(stand_in ${PROJECT_SOURCE_DIR}/bench/native/verbs/loopback_device.cpp)
    add_library(loopback_verbs MODULE EXCLUDE_FROM_ALL ${verbs_sources} ${stand_in})
    target_include_directories(loopback_verbs SYSTEM PRIVATE ${IBVERBS_INCLUDE_DIR})
    target_link_libraries(loopback_verbs PRIVATE kvstore_core kvstore_options)
    target_link_options(loopback_verbs PRIVATE
      -Wl,--gc-sections -Wl,--version-script=${verbs_exports})
    add_executable(store_path EXCLUDE_FROM_ALL
      ${PROJECT_SOURCE_DIR}/bench/native/verbs/store_path.cpp)
    target_link_libraries(store_path PRIVATE kvstore_core kvstore_options)
    add_dependencies(store_path loopback_verbs)
    list(FILTER verbs_sources EXCLUDE REGEX "/library.cpp$")
    add_executable(post_path EXCLUDE_FROM_ALL
      ${PROJECT_SOURCE_DIR}/bench/native/verbs/post_path.cpp ${verbs_sources} ${stand_in})
    target_include_directories(post_path SYSTEM PRIVATE ${IBVERBS_INCLUDE_DIR})
    target_link_libraries(post_path PRIVATE kvstore_core kvstore_options)
    # Beside the store it drives the device itself, so it has the fabric's sources and libibverbs.
    add_executable(verbs_bench EXCLUDE_FROM_ALL
      ${PROJECT_SOURCE_DIR}/bench/native/verbs/verbs_bench.cpp ${verbs_sources})
    target_include_directories(verbs_bench SYSTEM PRIVATE ${IBVERBS_INCLUDE_DIR})
    target_link_libraries(verbs_bench PRIVATE kvstore_core kvstore_options ${IBVERBS_LIBRARY})
    target_link_options(verbs_bench PRIVATE -Wl,--allow-shlib-undefined)
    set_target_properties(verbs_bench post_path store_path loopback_verbs PROPERTIES
      PREFIX ""
      RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/benches
      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/benches)
    # For a test of the lab.
    add_library(lost_device MODULE EXCLUDE_FROM_ALL
      ${PROJECT_SOURCE_DIR}/bench/native/verbs/lost_device.cpp)
    target_include_directories(lost_device SYSTEM PRIVATE ${IBVERBS_INCLUDE_DIR})
    target_link_libraries(lost_device PRIVATE kvstore_options ${CMAKE_DL_LIBS})
    set_target_properties(lost_device PROPERTIES PREFIX "")
  endif()
else()
  message(STATUS "infiniband/verbs.h is absent: the verbs fabric is not built")
endif()
