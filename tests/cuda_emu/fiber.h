// Stacks of their own that one host thread runs by turns.
#pragma once

#include <cstddef>

namespace jevons::emu {

// A place where execution can go on: the host's stack or a fiber's. Not moved once used.
struct Context {
  void* sp = nullptr;
  const void* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
};

// Makes `context` the stack of the thread that calls.
void AdoptHost(Context& context);
// Gives the context a stack, once, and lets it start `entry`, which never returns, at the next
// switch to it. What ran there before is forgotten, its objects are not destroyed.
void StartFiber(Context& context, void (*entry)());
// What the fiber did before is ordered as if it had called Release(key) (sanitizer.h); the host
// calls, and the fiber will not go on.
void ReleaseAs(const Context& host, const Context& fiber, void* key);
// Goes on in `to`; returns when something switches back to `from`, which must be what runs now.
void SwitchContext(Context& from, Context& to);
// The first thing that `entry` does.
void FiberStarted();

}  // namespace jevons::emu
