#include "tests/cuda_emu/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/cuda_emu/sanitizer.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace jevons::emu {
namespace {

// The sanitizers' stack frames are several times larger.
size_t StackBytes() { return (UnderAsan() || UnderTsan() ? 256 : 64) * 1024; }

// Pages below the stack that fault: a kernel thread that needs more ends the program there.
void* NewStack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* const base =
      static_cast<char*>(mmap(nullptr, guard + StackBytes(), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0));
  if (base == MAP_FAILED || mprotect(base, guard, PROT_NONE) != 0) {
    std::perror("CUDA emulator: no stack for a thread");
    std::abort();
  }
  return base + guard;
}

}  // namespace

#if defined(__x86_64__)

// Saves what a function must preserve, and exchanges the stacks. The control words of the FPU are
// the same in all of them.
extern "C" void jevons_emu_switch(void** from_sp, void* to_sp);
asm(R"(
.text
.globl jevons_emu_switch
.type jevons_emu_switch, @function
jevons_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size jevons_emu_switch, .-jevons_emu_switch
)");

void PrepareStack(Context& context, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  uintptr_t* sp = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(context.stack) +
                                               context.stack_bytes);
  *--sp = 0;  // where `entry` would return to: the end of a backtrace
  *--sp = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--sp = 0;
  context.sp = sp;
}

inline void SwitchStack(Context& from, Context& to) { jevons_emu_switch(&from.sp, to.sp); }

#else

void PrepareStack(Context& context, void (*entry)()) {
  if (context.sp == nullptr) context.sp = new ucontext_t;
  ucontext_t& state = *static_cast<ucontext_t*>(context.sp);
  getcontext(&state);
  state.uc_stack.ss_sp = const_cast<void*>(context.stack);
  state.uc_stack.ss_size = context.stack_bytes;
  state.uc_link = nullptr;
  makecontext(&state, entry, 0);
}

inline void SwitchStack(Context& from, Context& to) {
  if (from.sp == nullptr) from.sp = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.sp), static_cast<ucontext_t*>(to.sp));
}

#endif

void AdoptHost(Context& context) {
  if (UnderAsan()) {
    pthread_attr_t attributes;
    void* stack = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &stack, &context.stack_bytes);
      pthread_attr_destroy(&attributes);
    }
    context.stack = stack;
  }
  if (UnderTsan()) context.tsan = __tsan_get_current_fiber();
}

void StartFiber(Context& context, void (*entry)()) {
  if (context.stack == nullptr) {
    context.stack = NewStack();
    context.stack_bytes = StackBytes();
  }
  Unpoison(context.stack, context.stack_bytes);
  if (UnderTsan()) {
    if (context.tsan != nullptr) __tsan_destroy_fiber(context.tsan);
    context.tsan = __tsan_create_fiber(0);
  }
  context.fake_stack = nullptr;
  PrepareStack(context, entry);
}

void ReleaseAs(const Context& host, const Context& fiber, void* key) {
  if (!UnderTsan()) return;
  __tsan_switch_to_fiber(fiber.tsan, 1);
  __tsan_release(key);
  __tsan_switch_to_fiber(host.tsan, 1);
}

void SwitchContext(Context& from, Context& to) {
  // Flag 1: the switch itself orders nothing.
  if (UnderTsan()) __tsan_switch_to_fiber(to.tsan, 1);
  if (UnderAsan()) __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
  SwitchStack(from, to);
  if (UnderAsan()) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void FiberStarted() {
  if (UnderAsan()) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

}  // namespace jevons::emu
