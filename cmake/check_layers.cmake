# The layer table as a test: which folder may include which, and where gRPC, CUDA, NCCL and Gloo may appear.
#
#   cmake -DROOT=<repository> -P cmake/check_layers.cmake
#
# Fails with one line a violation. check_layers_test.cmake plants violations and sees them found.
cmake_minimum_required(VERSION 3.22)

set(folders base ops cpu cuda parallel model scheduler engine server client proto bench tests tools)

# Every folder may include itself and base/.
set(may_include_ops "")
set(may_include_cpu ops)
set(may_include_cuda ops)
set(may_include_parallel "")
set(may_include_model ops parallel)
set(may_include_scheduler "")
set(may_include_engine scheduler model parallel ops)
set(may_include_server engine scheduler model proto)
set(may_include_client proto)
set(may_include_proto "")
set(may_include_bench ${folders})
set(may_include_tests ${folders})
set(may_include_tools "")

# Single headers beyond the table: the engine picks a backend through its factory, kernels of parallel/ speak to the
# hardware as all do, and the binary's subcommands (jevons chat) reach the client.
set(exceptions
    "^engine/[^ ]* includes cpu/cpu_backend\\.h$"
    "^engine/[^ ]* includes cuda/cuda_backend\\.h$"
    "^parallel/[a-z_]*\\.cu includes cuda/device/[^ ]*$"
    "^server/cmd_[a-z]+\\.cc includes client/[^ ]*$")

set(grpc_headers "^(grpc|grpcpp|grpc\\+\\+)/|\\.grpc\\.pb\\.h$")
set(grpc_folders server client proto bench tests)
# Of other people's devices and networks a layer shows nothing: their headers stay in the files that match.
set(cuda_headers "^(cuda[a-z0-9_]*|nvToolsExt)\\.h$")
set(cuda_files "^(cuda|bench|tests)/|^parallel/[^/]*\\.(cc|cu)$")
set(nccl_headers "^nccl[a-z_]*\\.h$")
set(nccl_files "^(bench|tests)/|^parallel/[^/]*\\.(cc|cu)$")
set(gloo_headers "^gloo/")
set(gloo_files "^parallel/[^/]*\\.cc$")

set(violations "")
set(num_files 0)

# Appends a violation if the table does not let `file` (of `folder`) include `header`.
macro(check_include folder file header)
  string(REGEX MATCH "^[^/]+" target "${header}")
  if("${header}" MATCHES "\\.pb\\.h$")
    set(target proto)  # made by protoc, under the name of the proto package
  endif()
  set(edge "${file} includes ${header}")
  set(excepted FALSE)
  foreach(exception IN LISTS exceptions)
    if("${edge}" MATCHES "${exception}")
      set(excepted TRUE)
    endif()
  endforeach()
  if("${header}" MATCHES "${grpc_headers}" AND NOT "${folder}" IN_LIST grpc_folders)
    list(APPEND violations "${edge}: gRPC stays in server/ and client/")
  elseif("${header}" MATCHES "${cuda_headers}" AND NOT "${file}" MATCHES "${cuda_files}")
    list(APPEND violations "${edge}: CUDA stays in cuda/ and parallel/*.cc,cu")
  elseif("${header}" MATCHES "${nccl_headers}" AND NOT "${file}" MATCHES "${nccl_files}")
    list(APPEND violations "${edge}: NCCL stays in parallel/*.cc,cu")
  elseif("${header}" MATCHES "${gloo_headers}" AND NOT "${file}" MATCHES "${gloo_files}")
    list(APPEND violations "${edge}: Gloo stays in parallel/*.cc")
  elseif("${target}" IN_LIST folders AND NOT "${target}" STREQUAL "${folder}"
         AND NOT "${target}" STREQUAL "base" AND NOT "${target}" IN_LIST may_include_${folder}
         AND NOT excepted)
    list(APPEND violations "${edge}: ${folder}/ may not include ${target}/")
  elseif(NOT "${header}" MATCHES "/" AND EXISTS "${ROOT}/${folder}/${header}")
    list(APPEND violations "${edge}: write the folder, as in ${folder}/${header}")
  endif()
endmacro()

foreach(folder IN LISTS folders)
  file(GLOB_RECURSE files RELATIVE "${ROOT}" "${ROOT}/${folder}/*.h" "${ROOT}/${folder}/*.cc"
       "${ROOT}/${folder}/*.cu" "${ROOT}/${folder}/*.cuh")
  foreach(file IN LISTS files)
    math(EXPR num_files "${num_files} + 1")
    file(STRINGS "${ROOT}/${file}" lines REGEX "^[ \t]*#[ \t]*include[ \t]*[\"<]")
    set(first "")
    foreach(line IN LISTS lines)
      string(REGEX REPLACE "^[ \t]*#[ \t]*include[ \t]*[\"<]([^\">]+).*" "\\1" header "${line}")
      if("${first}" STREQUAL "")
        set(first "${header}")
      endif()
      check_include("${folder}" "${file}" "${header}")
    endforeach()
    # A source that starts with its own header shows that the header compiles alone.
    string(REGEX REPLACE "\\.cc$" ".h" own_header "${file}")
    if("${file}" MATCHES "\\.cc$" AND EXISTS "${ROOT}/${own_header}"
       AND NOT "${first}" STREQUAL "${own_header}")
      list(APPEND violations "${file} starts with ${first}: its own header comes first")
    endif()
  endforeach()
endforeach()

if(violations)
  list(JOIN violations "\n  " text)
  message(FATAL_ERROR "The layer table does not allow:\n  ${text}")
endif()
if(num_files EQUAL 0)
  message(FATAL_ERROR "no source file under ${ROOT}")
endif()
message(STATUS "${num_files} files keep to the layer table")
