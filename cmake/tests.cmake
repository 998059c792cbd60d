# Native tests, fuzzers and benchmarks. Nothing here belongs to the default target.
find_path(DOCTEST_INCLUDE_DIR doctest/doctest.h
  HINTS ${PROJECT_SOURCE_DIR}/build/debs/root/usr/include)

if(KVSTORE_BUILD_TESTS AND NOT DOCTEST_INCLUDE_DIR)
  message(WARNING "doctest/doctest.h is absent: run `python scripts/debs.py doctest-dev` "
    "and configure again; kvstore_native_tests is not defined")
elseif(KVSTORE_BUILD_TESTS)
  if(NOT DEFINED KVSTORE_TESTED)
    set(KVSTORE_TESTED "*")
  endif()
  set(test_sources)
  foreach(layer IN LISTS KVSTORE_TESTED)
    file(GLOB layer_tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${layer}/*.cpp)
    list(APPEND test_sources ${layer_tests})
  endforeach()
  list(FILTER test_sources EXCLUDE REGEX "/tests/(fuzz|sim)/")
  add_executable(kvstore_native_tests EXCLUDE_FROM_ALL
    ${PROJECT_SOURCE_DIR}/cmake/doctest_main.cpp ${test_sources})
  target_include_directories(kvstore_native_tests PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(kvstore_native_tests SYSTEM PRIVATE ${DOCTEST_INCLUDE_DIR})
  target_link_libraries(kvstore_native_tests PRIVATE kvstore_core kvstore_options)
  # Not from __FILE__, which a compiler cache may make relative.
  set_source_files_properties(${PROJECT_SOURCE_DIR}/tests/layout/table_test.cpp PROPERTIES
    COMPILE_DEFINITIONS KVSTORE_LAYOUT_TABLE="${PROJECT_SOURCE_DIR}/tests/layout/layout_table.txt")
endif()

if(KVSTORE_BUILD_TESTS)
  file(GLOB bench_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/native/*_bench.cpp)
  add_custom_target(kvstore_native_benches)
  foreach(source IN LISTS bench_sources)
    cmake_path(GET source STEM bench)
    add_executable(${bench} EXCLUDE_FROM_ALL ${source})
    target_link_libraries(${bench} PRIVATE kvstore_core kvstore_options)
    set_target_properties(${bench} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/benches)
    add_dependencies(kvstore_native_benches ${bench})
  endforeach()
endif()

if(KVSTORE_BUILD_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "fuzzers need clang: `make sanitize` unpacks and uses it")
  endif()
  file(GLOB fuzz_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/*_fuzz.cpp)
  # The core sees the fuzzer's coverage; only the fuzzers themselves link its main().
  if(core_sources)
    target_compile_options(kvstore_core PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  add_custom_target(kvstore_fuzzers)
  foreach(source IN LISTS fuzz_sources)
    cmake_path(GET source STEM fuzzer)
    add_executable(${fuzzer} EXCLUDE_FROM_ALL ${source})
    target_compile_options(${fuzzer} PRIVATE -fsanitize=fuzzer)
    target_link_options(${fuzzer} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${fuzzer} PRIVATE kvstore_core kvstore_options)
    set_target_properties(${fuzzer} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzzers)
    add_dependencies(kvstore_fuzzers ${fuzzer})
  endforeach()
endif()
