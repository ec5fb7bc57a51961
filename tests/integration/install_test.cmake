# cmake -DBUILD=(build folder) -DSOURCE=(project) -P install_test.cmake
set(scratch ${BUILD}/install_test)
file(REMOVE_RECURSE ${scratch})
foreach(command
    "${CMAKE_COMMAND};--install;${BUILD};--prefix;${scratch}/prefix"
    "${CMAKE_COMMAND};-S;${SOURCE};-B;${scratch}/build;-DCMAKE_PREFIX_PATH=${scratch}/prefix"
    "${CMAKE_COMMAND};--build;${scratch}/build"
    "${scratch}/build/installed_worker")
  execute_process(COMMAND ${command} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
