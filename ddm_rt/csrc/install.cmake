# What is installed, in three components: runtime, development and tools.
include(CMakePackageConfigHelpers)
set(cmake_folder "${CMAKE_INSTALL_LIBDIR}/cmake/ddm_rt")
install(TARGETS ddm_rt EXPORT ddm_rt
  LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
  ARCHIVE COMPONENT development
  PUBLIC_HEADER COMPONENT development)
install(EXPORT ddm_rt NAMESPACE ddm_rt:: FILE ddm_rtTargets.cmake DESTINATION "${cmake_folder}" COMPONENT development)

# A static library leaves what it is made with to the program that links it: then the private requirements are everybody's.
set(dependencies "")
set(private .private)
set(requires "sqlite3, libcrypto >= 3, libutf8proc")
set(libs "-lstdc++ -lm -pthread -ldl")
if(kind STREQUAL "STATIC_LIBRARY")
  set(private "")
  set(dependencies [[
if(NOT CMAKE_CXX_COMPILER_LOADED)
  set(ddm_rt_FOUND FALSE)
  set(ddm_rt_NOT_FOUND_MESSAGE "the static library has C++ inside: the project's languages must include CXX")
  return()
endif()
include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(SQLite3)
find_dependency(OpenSSL 3 COMPONENTS Crypto)
find_dependency(PkgConfig)
pkg_check_modules(utf8proc REQUIRED QUIET IMPORTED_TARGET libutf8proc)
]])
endif()
if(ort_link STREQUAL "onnxruntime::onnxruntime")
  if(dependencies)
    string(APPEND dependencies "find_dependency(onnxruntime CONFIG)\n")
  endif()
  string(APPEND requires ", libonnxruntime")
elseif(ort_link)
  string(PREPEND libs "${ort_link} ")
endif()
set(own_libs "-L\${libdir} -lddm_rt")
if(private)
  string(APPEND own_libs "\nLibs.private:")
endif()
file(CONFIGURE OUTPUT ddm_rtConfig.cmake @ONLY CONTENT
  "@dependencies@include(\"\${CMAKE_CURRENT_LIST_DIR}/ddm_rtTargets.cmake\")\n")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/ddm_rtConfigVersion.cmake" COMPATIBILITY SameMinorVersion)

# Relative, so that the installed folder may be moved; a folder elsewhere stays as it is.
file(RELATIVE_PATH pc_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
set(pc_prefix "\${pcfiledir}/${pc_prefix}")
set(pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
  set(pc_libdir "${CMAKE_INSTALL_LIBDIR}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
endif()
file(CONFIGURE OUTPUT ddm_rt.pc @ONLY CONTENT [[
prefix=@pc_prefix@
libdir=@pc_libdir@
includedir=@pc_includedir@

Name: ddm_rt
Description: @PROJECT_DESCRIPTION@
Version: @PROJECT_VERSION@
Requires@private@: @requires@
Libs: @own_libs@ @libs@
Cflags: -I${includedir}
]])
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ddm_rtConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/ddm_rtConfigVersion.cmake"
  DESTINATION "${cmake_folder}" COMPONENT development)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ddm_rt.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)

if(DDM_RT_BUILD_CLI)
  file(RELATIVE_PATH library_from_command "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
  set(library_from_command "$ORIGIN/${library_from_command}")
  if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_BINDIR}")
    set(library_from_command "${CMAKE_INSTALL_FULL_LIBDIR}")
  endif()
  set_target_properties(ddm-cli PROPERTIES INSTALL_RPATH "${library_from_command}")
  install(TARGETS ddm-cli COMPONENT tools)
  execute_process(COMMAND gzip -9nc "${CMAKE_CURRENT_SOURCE_DIR}/cli/ddm-cli.1"
    OUTPUT_FILE "${CMAKE_CURRENT_BINARY_DIR}/ddm-cli.1.gz" COMMAND_ERROR_IS_FATAL ANY)
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ddm-cli.1.gz" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" COMPONENT tools)
endif()

if(PROJECT_IS_TOP_LEVEL AND DDM_RT_DEB)
  include(deb.cmake)
endif()
