// What the emulator tells the sanitizers. The functions are there when the program is linked with
// the sanitizer, and null otherwise.
//
// The emulator itself is compiled without ThreadSanitizer (its state would look like a race between
// the fibers) and says with Read and Write which bytes a kernel thread touches through a wrapper.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__)
#error "compile the emulator's sources with -fno-sanitize=thread"
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#error "compile the emulator's sources with -fno-sanitize=thread"
#endif
#endif

extern "C" {
#define JEVONS_EMU_WEAK __attribute__((weak))
JEVONS_EMU_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom,
                                                    size_t bytes);
JEVONS_EMU_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom,
                                                     size_t* bytes);
JEVONS_EMU_WEAK void __asan_poison_memory_region(const volatile void* address, size_t bytes);
JEVONS_EMU_WEAK void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
JEVONS_EMU_WEAK void* __tsan_get_current_fiber();
JEVONS_EMU_WEAK void* __tsan_create_fiber(unsigned flags);
JEVONS_EMU_WEAK void __tsan_destroy_fiber(void* fiber);
JEVONS_EMU_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
JEVONS_EMU_WEAK void __tsan_acquire(void* address);
JEVONS_EMU_WEAK void __tsan_release(void* address);
JEVONS_EMU_WEAK void __tsan_func_entry(void* call_pc);
JEVONS_EMU_WEAK void __tsan_func_exit();
JEVONS_EMU_WEAK void __tsan_read_range(void* address, size_t bytes);
JEVONS_EMU_WEAK void __tsan_write_range(void* address, size_t bytes);
#undef JEVONS_EMU_WEAK
}

namespace jevons::emu {

inline bool UnderAsan() { return &__asan_poison_memory_region != nullptr; }
inline bool UnderTsan() { return &__tsan_create_fiber != nullptr; }

inline void Poison(const void* address, size_t bytes) {
  if (UnderAsan()) __asan_poison_memory_region(address, bytes);
}
inline void Unpoison(const void* address, size_t bytes) {
  if (UnderAsan()) __asan_unpoison_memory_region(address, bytes);
}

// A happens-before edge from every Release of a key to a later Acquire of it.
inline void Release(void* key) {
  if (UnderTsan()) __tsan_release(key);
}
inline void Acquire(void* key) {
  if (UnderTsan()) __tsan_acquire(key);
}

// The running thread touches these bytes; `pc` is the place in the kernel that a report names.
inline void Read(const void* address, size_t bytes, void* pc) {
  if (!UnderTsan() || bytes == 0) return;
  __tsan_func_entry(pc);
  __tsan_read_range(const_cast<void*>(address), bytes);
  __tsan_func_exit();
}
inline void Write(void* address, size_t bytes, void* pc) {
  if (!UnderTsan() || bytes == 0) return;
  __tsan_func_entry(pc);
  __tsan_write_range(address, bytes);
  __tsan_func_exit();
}

}  // namespace jevons::emu
