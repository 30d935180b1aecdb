# Finds CUDA, or says that it is left out. Sets JEVONS_CUDA to ON or OFF.

# How the kernels of a target are compiled.
function(jevons_cuda_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-O3 -lineinfo --threads=1
      -Werror=all-warnings -Xptxas=-v,-warn-spills,-warn-lmem-usage
      -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
      -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_100,code=compute_100>)
  # What the compiler says of each kernel stays beside its object, for check_kernel_resources.
  set_target_properties(${target} PROPERTIES CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/tools/keep_kernels.sh)
endfunction()

if(NOT JEVONS_CUDA STREQUAL "OFF")
  # Toolkits are often beside the path.
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin)
  if(CMAKE_CUDA_COMPILER)
    # The architectures are listed in cuda/CMakeLists.txt.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    enable_language(CUDA)
    # Kernels are optimized whatever the rest is: their report must not depend on it.
    set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-DNDEBUG")
    set(CMAKE_CUDA_FLAGS_RELEASE "-DNDEBUG")
    set(CMAKE_CUDA_FLAGS_DEBUG "")
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    find_package(CUDAToolkit 12.4 REQUIRED)
    # Not in every toolkit. Without it --cublaslt-rows is refused.
    find_file(JEVONS_CUBLASLT_HEADER cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}")
    set(JEVONS_CUDA ON)
    return()
  endif()
  if(JEVONS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CUDA: nvcc was not found. Put it on the PATH, or configure with -DJEVONS_CUDA=OFF")
  endif()
endif()
message(STATUS "CUDA: left out (no nvcc found, or JEVONS_CUDA=OFF); the CPU backend alone is built")
set(JEVONS_CUDA OFF)
