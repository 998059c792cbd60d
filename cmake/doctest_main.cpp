// The main function of kvstore_native_tests; the tests themselves register from their own files.

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
