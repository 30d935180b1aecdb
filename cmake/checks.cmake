# What is checked of the sources themselves: layers, headers that compile alone, format; and the summary script.

jevons_check(check_layers COMMAND ${CMAKE_COMMAND} -DROOT=${CMAKE_SOURCE_DIR}
                                  -P ${CMAKE_SOURCE_DIR}/cmake/check_layers.cmake)
jevons_check(check_layers_finds_violations
             COMMAND ${CMAKE_COMMAND} -DSCRATCH=${CMAKE_BINARY_DIR}/check_layers_scratch
                     -P ${CMAKE_SOURCE_DIR}/cmake/check_layers_test.cmake)
jevons_check(check_contracts COMMAND ${CMAKE_COMMAND} -DROOT=${CMAKE_SOURCE_DIR}
                                     -P ${CMAKE_SOURCE_DIR}/cmake/check_contracts.cmake)
jevons_check(check_format COMMAND ${CMAKE_SOURCE_DIR}/tools/format.sh --check)
jevons_check(check_test_summary COMMAND ${CMAKE_SOURCE_DIR}/tools/test_summary_test.sh
                                        ${CMAKE_BINARY_DIR}/test_summary_scratch)

# What nvcc made of the kernels: the build keeps it (tools/keep_kernels.sh). The target renews the table.
if(JEVONS_CUDA)
  find_program(JEVONS_PYTHON3 python3)
  set(python ${JEVONS_PYTHON3})
  if(NOT python)
    set(python sh -c "echo 'skipped: needs python3' && exit 77")
  endif()
  get_property(kernels GLOBAL PROPERTY JEVONS_CUDA_KERNELS)
  list(TRANSFORM kernels PREPEND cuda/CMakeFiles/jevons_cuda.dir/)
  set(kernel_targets jevons_cuda)
  if(JEVONS_NCCL_DEVICE)
    get_property(nccl_kernels GLOBAL PROPERTY JEVONS_NCCL_KERNELS)
    list(TRANSFORM nccl_kernels PREPEND parallel/CMakeFiles/jevons_nccl.dir/)
    list(APPEND kernels ${nccl_kernels})
    list(APPEND kernel_targets jevons_nccl)
  endif()
  list(PREPEND kernels ${CMAKE_BINARY_DIR})
  set(tools ${CMAKE_SOURCE_DIR}/tools)
  jevons_check(check_kernel_resources COMMAND ${python} ${tools}/kernel_resources.py --check ${kernels})
  jevons_check(check_kernel_sass COMMAND ${python} ${tools}/kernel_sass.py ${kernels})
  jevons_check(check_kernel_tools COMMAND ${python} ${tools}/kernel_tools_test.py)
  add_custom_target(kernel_resources COMMAND ${python} ${tools}/kernel_resources.py ${kernels}
                                     DEPENDS ${kernel_targets} VERBATIM)
endif()

# A header with a source of its own is that source's first include (the layer check sees to it), so it compiles
# alone. Each other header gets a source that includes nothing else.
set(header_folders base ops cpu cuda parallel model scheduler engine tests/support tests/parallel)
if(JEVONS_SERVER)
  list(APPEND header_folders server client)
endif()
if(JEVONS_BENCH)
  list(APPEND header_folders bench)
endif()
set(header_check_sources "")
foreach(folder IN LISTS header_folders)
  file(GLOB headers RELATIVE ${CMAKE_SOURCE_DIR} CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.h)
  foreach(header IN LISTS headers)
    string(REGEX REPLACE "\\.h$" ".cc" own_source ${header})
    # Highway compiles an -inl.h once for each target, from the source that names them.
    if(EXISTS ${CMAKE_SOURCE_DIR}/${own_source} OR header MATCHES "-inl\\.h$")
      continue()
    endif()
    set(source ${CMAKE_BINARY_DIR}/header_checks/${own_source})
    file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n")
    list(APPEND header_check_sources ${source})
  endforeach()
endforeach()
add_library(header_checks OBJECT ${header_check_sources})
target_compile_options(header_checks PRIVATE -O0 -g0 -Wno-unknown-pragmas)
# Headers of cuda/ need CUDA's; the emulator's do.
target_include_directories(header_checks BEFORE PRIVATE ${CMAKE_SOURCE_DIR}/tests/cuda_emu/include)
target_compile_definitions(header_checks PRIVATE JEVONS_SOURCE_DIR="" JEVONS_SHARED_DIR="")
target_link_libraries(header_checks PRIVATE jevons_base jevons_ops jevons_cpu jevons_parallel jevons_model
                                            jevons_scheduler jevons_engine GTest::gtest)
if(JEVONS_SERVER)
  target_link_libraries(header_checks PRIVATE jevons_proto)
endif()

get_property(gtests GLOBAL PROPERTY JEVONS_GTESTS)
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/gtest_tests.txt CONTENT "${gtests}")
