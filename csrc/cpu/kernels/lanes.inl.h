// Walking over rows of any length by vectors, and sharing rows between the threads.

// A vector of the next n ≥ 1 elements: all lanes, or the first n and zeros.
template <class T>
MOELENS_INLINE F32 load_up_to(const T* p, int64_t n) {
    return n >= kLanes ? load(p) : load_first(p, static_cast<int>(n));
}
template <class T>
MOELENS_INLINE void store_up_to(T* p, F32 a, int64_t n) {
    if (n >= kLanes) {
        store(p, a);
    } else {
        store_first(p, a, static_cast<int>(n));
    }
}

constexpr int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
constexpr int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}
constexpr int64_t divide_rounding_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

#ifndef MOELENS_TILES
struct TileScope {};
#endif

// Calls f(task, thread) for every task, on the team.
template <class F>
void run_tasks(const Context& context, int64_t count, const F& f) {
    const Team::Task call = [](void* self, int64_t task, int thread) {
        [[maybe_unused]] const TileScope scope{};
        (*static_cast<const F*>(self))(task, thread);
    };
    context.team.run(count, call, const_cast<F*>(&f));
}

// Calls f(row) for every row: on the team when the rows are work for more than one thread.
template <class F>
void for_rows(const Context& context, int64_t rows, int64_t elements_per_row, const F& f) {
    constexpr int64_t kElementsPerTask = 16384;  // some microseconds
    const int64_t per_task = larger(1, kElementsPerTask / larger(1, elements_per_row));
    run_tasks(context, divide_rounding_up(rows, per_task), [&](int64_t task, int) {
        const int64_t end = smaller(rows, (task + 1) * per_task);
        for (int64_t row = task * per_task; row < end; ++row) f(row);
    });
}
