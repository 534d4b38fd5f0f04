// Stacks that one thread of the process switches between, known to the sanitizers that watch it.
#pragma once

#include <cstddef>
#include <vector>

namespace moelens::emulation {

// All stacks of a thread of the process. A fiber begins in `entry`, which must not return.
class Fibers {
  public:
    ~Fibers();
    // A saved stack pointer that starts fiber `number` in `entry`.
    void* prepare(size_t number, void (*entry)());
    // Runs the fiber until it calls leave(); `stack_pointer` is its own, before and after.
    void enter(size_t number, void*& stack_pointer);
    // Called by a fiber: gives control back to enter().
    void leave(void*& stack_pointer, bool for_good);

  private:
    static constexpr size_t kStackBytes = 64 * 1024;

    std::vector<char*> stacks_;
    void* caller_ = nullptr;
};

// Must be the first thing that an entry does.
void begin_fiber();

}  // namespace moelens::emulation
