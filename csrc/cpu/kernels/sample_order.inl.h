// Finding and ordering the likeliest tokens, by binary heaps. (The standard library's functions would do, but compiled
// here they could be linked into code for processors that lack this instruction set.)

struct Candidate {
    float logit;
    int32_t id;
};

inline bool comes_before(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Restores the heap heap[0, count), whose root comes last, after element `at` was lowered.
template <class Before>
void sift_down(Candidate* heap, int64_t count, int64_t at, const Before& before) {
    const Candidate moved = heap[at];
    for (int64_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && before(heap[child], heap[child + 1])) ++child;
        if (!before(moved, heap[child])) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

template <class Before>
void make_heap(Candidate* heap, int64_t count, const Before& before) {
    for (int64_t at = count / 2; at-- > 0;) sift_down(heap, count, at, before);
}

template <class Before>
void sort_candidates(Candidate* candidates, int64_t count, const Before& before) {
    make_heap(candidates, count, before);
    for (int64_t end = count - 1; end > 0; --end) {
        const Candidate last = candidates[0];
        candidates[0] = candidates[end];
        candidates[end] = last;
        sift_down(candidates, end, 0, before);
    }
}

// The first `size` ≥ 1 of all that were offered, in no order.
class Selection {
  public:
    Selection(Candidate* memory, int64_t size) : heap_(memory), size_(size) {}

    void offer(const Candidate& candidate) {
        if (count_ < size_) {
            heap_[count_++] = candidate;
            if (count_ == size_) make_heap(heap_, size_, comes_before);
        } else if (comes_before(candidate, heap_[0])) {
            heap_[0] = candidate;
            sift_down(heap_, size_, 0, comes_before);
        }
    }

    // When `size` were offered: the one that comes last.
    const Candidate& last() const { return heap_[0]; }

  private:
    Candidate* heap_;
    int64_t size_, count_ = 0;
};
