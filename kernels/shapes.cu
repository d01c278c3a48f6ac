// The structs that cross from host to device, read back field by field: a test sends a distinct value through each.
#include "shapes.cuh"

// out = every field of every struct, in the order of the parameters and of their declaration
// out [36]; step in device memory
// grid: one thread
// test only
extern "C" __global__ void echo_shapes(double* __restrict__ out, const StepParams* __restrict__ step, ConvShape conv,
                                       Rows rows, PoolShape pool, LossShape loss, AugmentShape augment) {
  const double fields[] = {
      step->lr, step->lambda, step->eta, step->mu, step->weight_decay, step->clip, double(step->seed),
      double(step->step), double(step->reserved),
      double(conv.n), double(conv.h), double(conv.w), double(conv.c), double(conv.k), double(conv.r), double(conv.s),
      double(conv.stride), double(conv.pad),
      double(rows.rows), double(rows.channels),
      double(pool.n), double(pool.h), double(pool.w), double(pool.c), double(pool.r), double(pool.s),
      double(loss.entries), double(loss.classes),
      double(augment.n), double(augment.h), double(augment.w), double(augment.c), double(augment.pad),
      double(augment.flip), double(augment.view), double(augment.gather)};
  for (int i = 0; i < static_cast<int>(sizeof(fields) / sizeof(double)); i++) out[i] = fields[i];
}
