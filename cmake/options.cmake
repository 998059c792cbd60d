# kvstore_options: the flags of every target that we compile ourselves.
add_library(kvstore_options INTERFACE)
target_compile_options(kvstore_options INTERFACE -Wall -Wextra)
if(KVSTORE_WERROR)
  target_compile_options(kvstore_options INTERFACE -Werror)
endif()

# Debug information of the line tables only: back traces name lines, and archives stay small.
target_compile_options(kvstore_options INTERFACE -g1)

if(KVSTORE_SANITIZE STREQUAL "address")
  set(sanitize_flags -fsanitize=address,undefined -fno-sanitize-recover=all)
elseif(KVSTORE_SANITIZE STREQUAL "thread")
  set(sanitize_flags -fsanitize=thread)
elseif(NOT KVSTORE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "KVSTORE_SANITIZE is `${KVSTORE_SANITIZE}`; it may be address or thread")
endif()
if(sanitize_flags)
  target_compile_options(kvstore_options INTERFACE ${sanitize_flags} -fno-omit-frame-pointer)
  target_link_options(kvstore_options INTERFACE ${sanitize_flags})
endif()
