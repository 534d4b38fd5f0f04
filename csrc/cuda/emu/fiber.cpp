// Switching between stacks: a few instructions on x86-64, ucontext elsewhere.
#include "fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(__x86_64__)

extern "C" void moelens_switch_stack(void** saved, void* next);
// The callee-saved registers of the System V ABI lie on the stack that is left.
asm(R"(
.text
.globl moelens_switch_stack
.hidden moelens_switch_stack
.type moelens_switch_stack, @function
moelens_switch_stack:
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
.size moelens_switch_stack, .-moelens_switch_stack
)");

namespace {

void switch_stack(void*& saved, void* next) {
    moelens_switch_stack(&saved, next);
}

void* first_frame(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes - 64);
    *--top = nullptr;                              // the entry finds its stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);       // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
    return top;
}

}  // namespace

#else

#include <ucontext.h>

namespace {

// A context lies at the bottom of its stack; the caller's is made where it is first needed.
void switch_stack(void*& saved, void* next) {
    if (saved == nullptr) saved = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(saved), static_cast<ucontext_t*>(next));
}

void* first_frame(char* stack, size_t bytes, void (*entry)()) {
    auto* context = new (stack) ucontext_t;
    getcontext(context);
    constexpr size_t kContextBytes = (sizeof(ucontext_t) + 63) / 64 * 64;
    context->uc_stack.ss_sp = stack + kContextBytes;
    context->uc_stack.ss_size = bytes - kContextBytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

}  // namespace

#endif

namespace moelens::emulation {

Fibers::~Fibers() {
    for (char* stack : stacks_) munmap(stack, kStackBytes);
}

void* Fibers::prepare(size_t number, void (*entry)()) {
    while (stacks_.size() <= number) {
        void* stack =
            mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) throw std::bad_alloc();
        stacks_.push_back(static_cast<char*>(stack));
    }
#if defined(MOELENS_RACE_CHECK)
    // A new mapping, or the fiber before would seem to share its variables with this one.
    mmap(stacks_[number], kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks_[number], kStackBytes);  // of what the fiber before has left there
#endif
    return first_frame(stacks_[number], kStackBytes, entry);
}

#if defined(__SANITIZE_ADDRESS__)
namespace {
// The stack that fibers are entered from, which the sanitizer must be told of when they leave.
thread_local const void* caller_stack = nullptr;
thread_local size_t caller_stack_bytes = 0;
}  // namespace

void begin_fiber() {
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack, &caller_stack_bytes);
}
void Fibers::enter(size_t number, void*& stack_pointer) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stacks_[number], kStackBytes);
    switch_stack(caller_, stack_pointer);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
void Fibers::leave(void*& stack_pointer, bool for_good) {
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, caller_stack, caller_stack_bytes);
    switch_stack(stack_pointer, caller_);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#else
void begin_fiber() {}
void Fibers::enter(size_t, void*& stack_pointer) {
    switch_stack(caller_, stack_pointer);
}
void Fibers::leave(void*& stack_pointer, bool) {
    switch_stack(stack_pointer, caller_);
}
#endif

}  // namespace moelens::emulation
