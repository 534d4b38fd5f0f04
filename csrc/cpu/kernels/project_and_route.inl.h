// project_and_route: the product of what was attended with its residual, a norm, the router's product and its choice.
// A thread takes its rows through all of them: what passes from one to the next stays in its caches. Every number is
// that of the four ops in turn.

template <class T, class Out>
void project_and_route_typed(const Context& context, const ProjectAndRouteArgs& args) {
    using F = Format<T>;
    const LinearArgs &projection = args.projection, &router = args.router;
    const int threads = context.team.threads();
    const LinearTiling tiling = tile_linear<F>(projection, threads).of_whole_rows();
    const int64_t block_rows = tiling.tiles_per_block * kMaxRows;
    const int64_t floats = row_floats<F>(projection.inner), router_floats = row_floats<F>(router.inner);
    const int64_t sums_floats = larger(FinishedBeside<FinishLinear<T, Out>>::floats(tiling.tiles_per_block),
                                       FinishedBeside<FinishLinear<T, float>>::floats(tiling.tiles_per_block));
    for (int thread = 0; thread < threads; ++thread) {
        context.scratch.local[thread].reserve(
            (sums_floats + block_rows * (larger(floats, router_floats) + router.columns)) * sizeof(float));
    }
    run_tasks(context, tiling.task_count(), [&](int64_t index, int thread) {
        const int64_t block = tiling.task(index).row_block;
        float* sums = static_cast<float*>(context.scratch.local[thread].data());
        float* logits = sums + sums_floats;
        float* rows = logits + block_rows * router.columns;
        const Panels attended = tiling.rows_of(block, projection.rows, rows, floats);
        const int64_t first = attended.first_row(), end = first + attended.row_count();
        pack_tiles<T>(projection, attended, rows);
        multiply_panels<T, Out>(projection, attended, 0, tiling.panels, static_cast<const float*>(router.weight), sums);

        LinearArgs of_router = router;
        of_router.x = args.norm.out;
        of_router.out = logits - first * router.columns;
        for (int64_t row = first; row < end; ++row) {
            norm_row(args.norm, args.centred, static_cast<const Out*>(projection.out) + row * router.inner,
                     static_cast<T*>(args.norm.out) + row * router.inner);
        }
        const Panels normed = tiling.rows_of(block, projection.rows, rows, router_floats);
        pack_tiles<T>(of_router, normed, rows);
        multiply_panels<T, float>(of_router, normed, 0, divide_rounding_up(router.columns, kPanelColumns),
                                  static_cast<const float*>(projection.weight), sums);
        for (int64_t row = first; row < end; ++row) {
            route_row(args.route, row, logits + (row - first) * router.columns);
        }
    });
}

void project_and_route(const Context& context, const ProjectAndRouteArgs& args) {
    if (args.projection.rows == 0) return;
    if (args.norm.element == Element::kFloat32) {
        project_and_route_typed<float, float>(context, args);
    } else if (args.norm.x_element == Element::kFloat32) {
        project_and_route_typed<Bf16, float>(context, args);
    } else {
        project_and_route_typed<Bf16, Bf16>(context, args);
    }
}
