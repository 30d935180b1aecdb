# Helpers and flags that every folder shares.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# A static library waits for generated headers, not for the libraries that go with it.
set(CMAKE_OPTIMIZE_DEPENDENCIES ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
# Line numbers without local variables: the build takes a third less time and space. Debug has them all.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(JEVONS_OLDEST_COMPILER 12)
elseif(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  set(JEVONS_OLDEST_COMPILER 14)
else()
  message(FATAL_ERROR "Jevons is built with GCC or clang, not with ${CMAKE_CXX_COMPILER_ID}")
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS JEVONS_OLDEST_COMPILER)
  message(FATAL_ERROR "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} is too old: "
                      "Jevons needs ${JEVONS_OLDEST_COMPILER} or later")
endif()

find_program(JEVONS_CCACHE ccache)
if(JEVONS_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${JEVONS_CCACHE})
endif()

add_library(jevons_flags INTERFACE)
target_include_directories(jevons_flags INTERFACE ${CMAKE_SOURCE_DIR})
# No contraction of a * b + c: a twin and its fast version say themselves where they fuse.
target_compile_options(jevons_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-unused-parameter -ffp-contract=off>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(jevons_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety>)
endif()
if(JEVONS_SANITIZE)
  target_compile_options(jevons_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${JEVONS_SANITIZE} -fno-omit-frame-pointer>)
  target_link_options(jevons_flags INTERFACE -fsanitize=${JEVONS_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The instrumentation makes GCC see uninitialized values where there are none (std::variant).
    target_compile_options(jevons_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
  endif()
  if(JEVONS_SANITIZE MATCHES "address")
    target_compile_options(jevons_flags INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=undefined -fno-sanitize-recover=undefined>)
    target_link_options(jevons_flags INTERFACE -fsanitize=undefined)
  endif()
endif()

# jevons_library(folder SRCS a.cc ... DEPS lib ...): the library of one folder, `jevons_<folder>`.
function(jevons_library folder)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(jevons_${folder} STATIC ${ARG_SRCS})
  target_link_libraries(jevons_${folder} PUBLIC jevons_flags ${ARG_DEPS})
endfunction()

# Adds the GoogleTest binary `name`. Its options are those of jevons_test.
function(jevons_test_binary name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS;ENV" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  # Tests are compiled more often than they run.
  target_compile_options(${name} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O1>)
  target_compile_definitions(${name} PRIVATE JEVONS_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                                             JEVONS_SHARED_DIR="${JEVONS_SHARED_DIR}")
endfunction()

# Adds the run `test` of the GoogleTest binary `binary`. Its cases are counted from the result file that it writes
# (tools/test_summary.sh).
function(jevons_test_run test binary)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS;ENV" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
    if(JEVONS_SANITIZE)
      set(ARG_TIMEOUT 3000)
    endif()
  endif()
  add_test(NAME ${test} COMMAND ${binary})
  set_tests_properties(${test} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "GTEST_OUTPUT=xml:${CMAKE_BINARY_DIR}/test-results/${test}.xml;${ARG_ENV}")
  set_property(GLOBAL APPEND_STRING PROPERTY JEVONS_GTESTS "${test}\n")
endfunction()

# jevons_test(name SRCS a.cc ... DEPS lib ... LABELS unit [ENV A=1 ...] [TIMEOUT seconds]):
# one GoogleTest binary, one ctest.
function(jevons_test name)
  jevons_test_binary(${name} ${ARGN})
  jevons_test_run(${name} ${name} ${ARGN})
endfunction()

# The same, but run once for each CPU target. A target that the machine lacks is for the test to skip.
function(jevons_test_per_cpu_target name)
  jevons_test_binary(${name} ${ARGN})
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS;ENV" ${ARGN})
  foreach(target baseline avx2 avx512)
    jevons_test_run(${name}_${target} ${name} LABELS ${ARG_LABELS} TIMEOUT ${ARG_TIMEOUT}
                    ENV JEVONS_CPU_TARGET=${target} ${ARG_ENV})
  endforeach()
endfunction()

# jevons_check(name COMMAND ...): a test that is a script. Exit code 77 and a line "skipped: why" is a skip.
function(jevons_check name)
  cmake_parse_arguments(ARG "" "" "COMMAND" ${ARGN})
  add_test(NAME ${name} COMMAND ${ARG_COMMAND} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 120 SKIP_RETURN_CODE 77)
endfunction()
