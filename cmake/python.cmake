# The two Python modules, both for the stable ABI of Python 3.11.
#
# A wheel installs them. An editable build writes them beside the Python sources instead, so that
# `cmake --build` alone brings a checkout up to date and no stale copy can be imported.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.SABIModule)

function(kvstore_python_module name)
  target_link_options(${name} PRIVATE
    -Wl,--exclude-libs,ALL
    -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map)
  set_target_properties(${name} PROPERTIES LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
  # Symbols of the core are of use in a back trace of a checkout, not in a wheel.
  if(SKBUILD_STATE STREQUAL "editable")
    set_target_properties(${name} PROPERTIES
      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_SOURCE_DIR}/kvstore)
  else()
    target_link_options(${name} PRIVATE -Wl,--strip-debug)
    install(TARGETS ${name} LIBRARY DESTINATION kvstore)
  endif()
endfunction()

# `make setup` installs the package with this empty target and lets `make build` compile, so that
# compiler output is shown as it comes.
add_custom_target(kvstore_prepare)
if(SKBUILD_STATE STREQUAL "editable")
  file(WRITE ${PROJECT_BINARY_DIR}/kvstore_checkout.pth "${PROJECT_SOURCE_DIR}\n")
  install(FILES ${PROJECT_BINARY_DIR}/kvstore_checkout.pth DESTINATION ${SKBUILD_PLATLIB_DIR})
endif()

# The C header is the single source: the declarations between its marks become the cffi module.
set(api_header ${PROJECT_SOURCE_DIR}/native/api/kvstore.h)
file(GLOB api_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/api/*.cpp)
if(EXISTS ${api_header} AND api_sources)
  set(emitter ${PROJECT_SOURCE_DIR}/scripts/native_interface.py)
  set(native_source ${PROJECT_BINARY_DIR}/generated/_native.c)
  add_custom_command(
    OUTPUT ${native_source}
    COMMAND Python::Interpreter ${emitter} c ${api_header} ${native_source}
    DEPENDS ${api_header} ${emitter}
    COMMENT "Generating the cffi module from native/api/kvstore.h"
    VERBATIM)
  Python_add_library(_native MODULE USE_SABI 3.11 WITH_SOABI ${native_source})
  set_target_properties(_native PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(_native PRIVATE kvstore_core)
  kvstore_python_module(_native)
else()
  message(STATUS "native/api is absent: kvstore._native is not built")
endif()

file(GLOB fast_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/python/fast*.cpp)
if(fast_sources)
  Python_add_library(_fast MODULE USE_SABI 3.11 WITH_SOABI ${fast_sources})
  target_include_directories(_fast PRIVATE ${PROJECT_SOURCE_DIR}/native)
  target_link_libraries(_fast PRIVATE kvstore_options)
  kvstore_python_module(_fast)
else()
  message(STATUS "native/python is absent: kvstore._fast is not built")
endif()
