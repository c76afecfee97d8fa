# The kernels of an instruction set contain no fused multiply-add, whatever the compiler thinks of it.
#
#   cmake "-DOBJECTS=a.o|b.o" -DOBJDUMP=/usr/bin/objdump -P no_fused_multiply_add.cmake
#
# A test, and not an option alone: see "Fused multiply-add changes bytes" in docs/footguns.md.
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
foreach(object IN LISTS OBJECTS)
  execute_process(
    COMMAND ${OBJDUMP} --disassemble --no-show-raw-insn ${object}
    OUTPUT_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${OBJDUMP} ${object}: ${status}")
  endif()
  # A kernel multiplies, so a listing without any multiplication is not the listing of a kernel.
  if(NOT text MATCHES "[ \t]v?mulp[sd]|[ \t]fmul")
    message(FATAL_ERROR "${object}: no multiplication found, so this proves nothing")
  endif()
  # x86: vfmadd, vfmsub, vfnmadd, vfmaddsub, ...; ARM: fmla, fmls, fmadd, fnmadd, ...
  string(REGEX MATCHALL "[ \t](vfn?m(add|sub)[a-z0-9]*|fml[as]|fn?m(add|sub))[ \t][^\n]*" found "${text}")
  if(found)
    list(LENGTH found count)
    list(GET found 0 first)
    message(FATAL_ERROR "${object}: ${count} fused multiply-adds, the first: ${first}")
  endif()
endforeach()
