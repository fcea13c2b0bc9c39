# The payload of the KVM probe, a boot sector: BIOS calls and a read of the disk as
# a kernel makes them, a timer interrupt, and the ways to protected and to long mode.
.code16
.globl _start
_start:
  ljmp $0, $1f
1: cli
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movw $0x7c00, %sp
  cld
  sti
  movb $0x80, %dl
2: movb $0x41, %ah
  movw $0x55aa, %bx
  pushw %dx
  int $0x13
  popw %dx
  incb %dl
  cmpb $0x90, %dl
  jne 2b
  movw $0x0201, %ax
  movw $0x8000, %bx
  movw $0x0001, %cx
  movw $0x0080, %dx
  int $0x13
  jc 9f
  cmpw $0xaa55, 0x81fe
  jne 9f
  movw 0x46c, %bx
3: hlt
  cmpw 0x46c, %bx
  je 3b
  cli
  lgdtl gdtr
  movl %cr0, %eax
  orb $1, %al
  movl %eax, %cr0
  ljmp $8, $4f
9: hlt
  jmp 9b
.code32
4: movw $16, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movl $0x1000, %edi
  movl %edi, %cr3
  xorl %eax, %eax
  movl $0xc00, %ecx
  rep stosl
  movl $0x2003, 0x1000
  movl $0x3003, 0x2000
  movl $0x83, 0x3000
  movl %cr4, %eax
  orb $0x20, %al
  movl %eax, %cr4
  movl $0xc0000080, %ecx
  rdmsr
  orb $1, %ah
  wrmsr
  movl %cr0, %eax
  orl $0x80000000, %eax
  movl %eax, %cr0
  ljmp $24, $5f
.code64
5: leaq said(%rip), %rsi
  movw $0x3f8, %dx
6: lodsb
  testb %al, %al
  jz 7f
  outb %al, %dx
  jmp 6b
7: cli
  hlt
  jmp 7b
said: .asciz "rackweft: 64-bit\n"
.p2align 3
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00209a0000000000
gdtr: .word 31
 .long gdt
.org 510
.word 0xaa55
