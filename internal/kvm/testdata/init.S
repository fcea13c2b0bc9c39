# The init of the KVM probe: a whole ELF file that says that it runs, again and
# again: the kernel may print in between.
.globl _start
elf:
  .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0
  .quad 0
  .word 2, 62
  .long 1
  .quad _start
  .quad segment - elf
  .quad 0
  .long 0
  .word 64, 56, 1, 0, 0, 0
segment:
  .long 1, 5
  .quad 0, elf, elf, end - elf, end - elf, 0x1000
_start:
  movl $1, %eax # write(2)
  movl $1, %edi
  leaq said(%rip), %rsi
  movl $pause - said, %edx
  syscall
  movl $35, %eax # nanosleep(2)
  leaq pause(%rip), %rdi
  xorl %esi, %esi
  syscall
  jmp _start
said: .ascii "rackweft: init runs\n"
pause: .quad 0, 200000000
end:
