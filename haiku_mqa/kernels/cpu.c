// Kernels for decoding on a CPU, called by XLA through its foreign function interface.
//
// Plain C, which the compiler makes into the vector instructions of the machine that
// it runs on: products of int16 and int8 become vpdpwssd, vpmaddwd, or smlal.

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

enum { kLine = 64 };  // bytes, of a cache

static size_t aligned_size(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// --- XLA's call ------------------------------------------------------------------------

static const XLA_FFI_Buffer *argument(const XLA_FFI_CallFrame *call, int64_t i) {
  return (const XLA_FFI_Buffer *)call->args.args[i];
}

static const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *call, int64_t i) {
  return (const XLA_FFI_Buffer *)call->rets.rets[i];
}

// XLA asks at registration which version of its interface a kernel was built with.
static bool answered_metadata(XLA_FFI_CallFrame *call) {
  XLA_FFI_Extension_Base *extension = call->extension_start;
  if (extension == NULL || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static XLA_FFI_Error *failed(const XLA_FFI_CallFrame *call, const char *message) {
  XLA_FFI_Error_Create_Args args = {
      .struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE,
      .message = message,
      .errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
  };
  return call->api->XLA_FFI_Error_Create(&args);
}

// --- Threads ---------------------------------------------------------------------------

// Does one part of a job; no two at once have the same worker, 0 up to their number.
typedef void Part(const void *job, int64_t part, int64_t worker);

// The parts that a worker begins with. They lie next to each other, so that each worker
// reads memory in one line, as the processor's own fetching ahead wants it.
typedef struct {
  _Alignas(kLine) atomic_llong next;
  int64_t end;
} Share;

typedef struct {
  atomic_llong done, holders, workers;
  int64_t parts, shares;
  Part *run;
  const void *job;
  Share share[];
} Shared;

static void release(Shared *shared) {
  if (atomic_fetch_sub(&shared->holders, 1) == 1) free(shared);
}

// Does the worker's own share, and then what is left of the others'.
static void take_parts(Shared *shared) {
  int64_t worker = atomic_fetch_add(&shared->workers, 1), part;
  for (int64_t i = 0; i < shared->shares; ++i) {
    Share *share = &shared->share[(worker + i) % shared->shares];
    while ((part = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed)) <
           share->end) {
      shared->run(shared->job, part, worker);
      atomic_fetch_add_explicit(&shared->done, 1, memory_order_release);
    }
  }
}

static void help(void *data) {
  take_parts(data);
  release(data);
}

static void forget(const XLA_FFI_CallFrame *call, XLA_FFI_Error *error) {
  XLA_FFI_Error_Destroy_Args args = {
      .struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, .error = error};
  call->api->XLA_FFI_Error_Destroy(&args);
}

// Returns how many workers a job can have: XLA's threads, of which this is one.
static int64_t count_workers(const XLA_FFI_CallFrame *call) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      .struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
      .ctx = call->ctx,
      .num_threads = &threads,
  };
  XLA_FFI_Error *error = call->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (error == NULL) return threads;
  forget(call, error);
  return 1;
}

// Runs all parts of a job, on this thread and on those of XLA that are free. One that
// comes late finds nothing left, so that no one waits for it.
static void run_parts(const XLA_FFI_CallFrame *call, int64_t workers, int64_t parts,
                      Part *run, const void *job) {
  int64_t helpers = smaller(workers, parts) - 1;
  size_t bytes = sizeof(Shared) + (helpers + 1) * sizeof(Share);
  Shared *shared = helpers > 0 ? aligned_alloc(kLine, aligned_size(bytes)) : NULL;
  if (shared == NULL) {
    for (int64_t part = 0; part < parts; ++part) run(job, part, 0);
    return;
  }
  *shared = (Shared){.parts = parts, .shares = helpers + 1, .run = run, .job = job};
  for (int64_t i = 0; i <= helpers; ++i) {
    atomic_init(&shared->share[i].next, parts * i / (helpers + 1));
    shared->share[i].end = parts * (i + 1) / (helpers + 1);
  }
  atomic_init(&shared->done, 0);
  atomic_init(&shared->workers, 0);
  atomic_init(&shared->holders, helpers + 1);
  for (int64_t i = 0; i < helpers; ++i) {
    XLA_FFI_ThreadPool_Schedule_Args args = {
        .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
        .ctx = call->ctx,
        .task = help,
        .data = shared,
    };
    XLA_FFI_Error *error = call->api->XLA_FFI_ThreadPool_Schedule(&args);
    if (error == NULL) continue;
    forget(call, error);
    release(shared);
  }
  take_parts(shared);
  while (atomic_load_explicit(&shared->done, memory_order_acquire) < parts) PAUSE();
  release(shared);
}

// The machine's vectors, and how many of them its registers hold. Wider ones, or more
// sums than there are registers, are handed through memory: a tenth of the speed.
#if defined(__AVX512F__)
#define VECTOR 64
#define MANY_REGISTERS 1
#elif defined(__AVX__)
#define VECTOR 32
#define MANY_REGISTERS 0
#else
#define VECTOR 16
#if defined(__aarch64__)
#define MANY_REGISTERS 1
#else
#define MANY_REGISTERS 0
#endif
#endif

// Nothing is assumed of where it lies.
typedef float Lanes __attribute__((vector_size(VECTOR), aligned(4), may_alias));
typedef int32_t Masks __attribute__((vector_size(VECTOR)));
enum {
  kLanes = sizeof(Lanes) / sizeof(float),
  kSide = MANY_REGISTERS ? 4 : 2,  // vectors of sums side by side, kTile rows of them
};

// --- Products with int8 matrices -------------------------------------------------------

enum {
  kTile = 4,           // rows of x and of a matrix whose products are made together
  kMatrixRows = 64,    // of a part
  kAhead = 2304,       // bytes of a matrix, from what is read to what is asked for
  kRows = 32,          // of x, of a part
  kLongestSum = 1024,  // products whose sum fits int32: 1024 * 127 * 16383 < 2^31
};
static const float kLargest = 16383.0f;

typedef struct {
  const int8_t *values;  // [out, in]
  const float *scales;   // [out]
  float *y;              // [rows, out]
  int64_t out;
  int64_t first_part;
} Matrix;

typedef struct {
  const float *x;  // [rows, in]
  int16_t *halves; // x as int16
  float *units;    // [rows], what one of an int16 stands for; NaN for a row that is not
                   // finite
  int64_t rows, in;
  const Matrix *matrices;
  int64_t count;
} Product;

static void round_row(const void *job, int64_t row, int64_t worker) {
  (void)worker;
  const Product *p = job;
  const float *x = p->x + row * p->in;
  int16_t *halves = p->halves + row * p->in;
  uint32_t largest_bits = 0; // of numbers without their sign, in the same order
  for (int64_t i = 0; i < p->in; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest;
  memcpy(&largest, &largest_bits, 4);
  bool is_finite = largest_bits < 0x7f800000u;
  float unit = largest / kLargest;
  // A row of zeros, or one so small that its unit is nothing, stays zeros.
  float inverse = is_finite && unit > 1e-37f ? 1.0f / unit : 0.0f;
  if (inverse == 0.0f) {
    memset(halves, 0, p->in * sizeof(int16_t));
    p->units[row] = is_finite ? 0.0f : NAN;
    return;
  }
  for (int64_t i = 0; i < p->in; ++i) halves[i] = (int16_t)rintf(x[i] * inverse);
  p->units[row] = unit;
}

// Sums the products of one row of x with kTile rows of a matrix.
static inline void sum_row(const int16_t *restrict x, const int8_t *restrict w,
                           int64_t in, int64_t size, int32_t *restrict sums) {
  const int8_t *w0 = w, *w1 = w + in, *w2 = w + 2 * in, *w3 = w + 3 * in;
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (int64_t i = 0; i < size; ++i) {
    s0 += (int32_t)x[i] * (int16_t)w0[i];
    s1 += (int32_t)x[i] * (int16_t)w1[i];
    s2 += (int32_t)x[i] * (int16_t)w2[i];
    s3 += (int32_t)x[i] * (int16_t)w3[i];
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

// Sums the products of kTile rows of x with kTile rows of a matrix. Written out, each
// sum stays in a register; as arrays, they do not.
#if MANY_REGISTERS
static inline void sum_tile(const int16_t *restrict x, const int8_t *restrict w,
                            int64_t in, int64_t size, int32_t *restrict sums) {
  const int16_t *x0 = x, *x1 = x + in, *x2 = x + 2 * in, *x3 = x + 3 * in;
  const int8_t *w0 = w, *w1 = w + in, *w2 = w + 2 * in, *w3 = w + 3 * in;
  int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  int32_t c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  for (int64_t i = 0; i < size; ++i) {
    int16_t v0 = w0[i], v1 = w1[i], v2 = w2[i], v3 = w3[i];
    a0 += (int32_t)x0[i] * v0, a1 += (int32_t)x0[i] * v1;
    a2 += (int32_t)x0[i] * v2, a3 += (int32_t)x0[i] * v3;
    b0 += (int32_t)x1[i] * v0, b1 += (int32_t)x1[i] * v1;
    b2 += (int32_t)x1[i] * v2, b3 += (int32_t)x1[i] * v3;
    c0 += (int32_t)x2[i] * v0, c1 += (int32_t)x2[i] * v1;
    c2 += (int32_t)x2[i] * v2, c3 += (int32_t)x2[i] * v3;
    d0 += (int32_t)x3[i] * v0, d1 += (int32_t)x3[i] * v1;
    d2 += (int32_t)x3[i] * v2, d3 += (int32_t)x3[i] * v3;
  }
  int32_t all[16] = {a0, a1, a2, a3, b0, b1, b2, b3,
                     c0, c1, c2, c3, d0, d1, d2, d3};
  memcpy(sums, all, sizeof(all));
}
#else
static inline void sum_half(const int16_t *restrict x, const int8_t *restrict w,
                            int64_t in, int64_t size, int32_t *restrict sums) {
  const int16_t *x0 = x, *x1 = x + in, *x2 = x + 2 * in, *x3 = x + 3 * in;
  const int8_t *w0 = w, *w1 = w + in;
  int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0, c0 = 0, c1 = 0, d0 = 0, d1 = 0;
  for (int64_t i = 0; i < size; ++i) {
    int16_t v0 = w0[i], v1 = w1[i];
    a0 += (int32_t)x0[i] * v0, a1 += (int32_t)x0[i] * v1;
    b0 += (int32_t)x1[i] * v0, b1 += (int32_t)x1[i] * v1;
    c0 += (int32_t)x2[i] * v0, c1 += (int32_t)x2[i] * v1;
    d0 += (int32_t)x3[i] * v0, d1 += (int32_t)x3[i] * v1;
  }
  sums[0] = a0, sums[1] = a1;
  sums[kTile] = b0, sums[kTile + 1] = b1;
  sums[2 * kTile] = c0, sums[2 * kTile + 1] = c1;
  sums[3 * kTile] = d0, sums[3 * kTile + 1] = d1;
}

static inline void sum_tile(const int16_t *restrict x, const int8_t *restrict w,
                            int64_t in, int64_t size, int32_t *restrict sums) {
  sum_half(x, w, in, size, sums);
  sum_half(x, w + 2 * in, in, size, sums + 2);
}
#endif

static int32_t sum_one(const int16_t *restrict x, const int8_t *restrict w,
                       int64_t size) {
  int32_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += (int32_t)x[i] * (int16_t)w[i];
  return sum;
}

// Writes y[row .. row + rows, out .. out + outs], each at most kTile.
static void write_tile(const Product *p, const Matrix *m, int64_t row, int64_t rows,
                       int64_t out, int64_t outs) {
  float sums[kTile * kTile] = {0};
  for (int64_t i = 0; i < p->in; i += kLongestSum) {
    int64_t size = smaller(kLongestSum, p->in - i);
    const int16_t *x = p->halves + row * p->in + i;
    const int8_t *w = m->values + out * p->in + i;
    int32_t whole[kTile * kTile];
    if (rows == kTile && outs == kTile) {
      sum_tile(x, w, p->in, size, whole);
    } else if (outs == kTile) {
      for (int64_t r = 0; r < rows; ++r)
        sum_row(x + r * p->in, w, p->in, size, whole + r * kTile);
    } else {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < outs; ++c)
          whole[r * kTile + c] = sum_one(x + r * p->in, w + c * p->in, size);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < outs; ++c)
        sums[r * kTile + c] += (float)whole[r * kTile + c];
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < outs; ++c)
      m->y[(row + r) * m->out + out + c] =
          sums[r * kTile + c] * p->units[row + r] * m->scales[out + c];
}

// Writes y[.., out] for so few rows that reading the matrix takes longer than the sums.
// Each of its rows is read whole before the next: one line through memory, not four.
static void write_column(const Product *p, const Matrix *m, int64_t out) {
  const int8_t *w = m->values + out * p->in;
  for (int64_t i = 0; i < p->in; i += kLine)
    __builtin_prefetch(w + kAhead + i, 0, 0);
  for (int64_t row = 0; row < p->rows; ++row) {
    const int16_t *x = p->halves + row * p->in;
    float sum = 0;
    for (int64_t i = 0; i < p->in; i += kLongestSum)
      sum += (float)sum_one(x + i, w + i, smaller(kLongestSum, p->in - i));
    m->y[row * m->out + out] = sum * p->units[row] * m->scales[out];
  }
}

static void multiply_part(const void *job, int64_t part, int64_t worker) {
  (void)worker;
  const Product *p = job;
  const Matrix *m = p->matrices;
  int64_t row_parts = (p->rows + kRows - 1) / kRows;
  int64_t matrix_part = part / row_parts;
  int64_t row = part % row_parts * kRows, last_row = smaller(p->rows, row + kRows);
  while (m + 1 < p->matrices + p->count && matrix_part >= m[1].first_part) ++m;
  int64_t out = (matrix_part - m->first_part) * kMatrixRows;
  int64_t last_out = smaller(m->out, out + kMatrixRows);
  if (p->rows < kTile) {
    for (; out < last_out; ++out) write_column(p, m, out);
    return;
  }
  for (; out < last_out; out += kTile) {
    // What is read once should come early, and leave no trace in the caches; what is
    // read again for other rows of x should stay.
    const int8_t *ahead = m->values + (out + 2 * kTile) * p->in;
    if (p->rows <= kTile) {
      for (int64_t i = 0; i < kTile * p->in; i += kLine) __builtin_prefetch(ahead + i, 0, 0);
    } else {
      for (int64_t i = 0; i < kTile * p->in; i += kLine) __builtin_prefetch(ahead + i, 0, 2);
    }
    for (int64_t r = row; r < last_row; r += kTile)
      write_tile(p, m, r, smaller(kTile, last_row - r), out,
                 smaller(kTile, last_out - out));
  }
}

// x f32 [rows, in]; then, of each matrix, values s8 [out, in] and scales f32 [out].
// Returns, for each matrix, f32 [rows, out].
XLA_FFI_Error *haiku_mqa_int8_dots(XLA_FFI_CallFrame *call) {
  if (answered_metadata(call)) return NULL;
  const XLA_FFI_Buffer *x = argument(call, 0);
  int64_t count = call->rets.size;
  Product p = {.x = x->data, .rows = x->dims[0], .in = x->dims[1], .count = count};
  // Of every load that crosses two lines of the cache, half its speed is lost.
  size_t halves = aligned_size(p.rows * p.in * sizeof(int16_t));
  size_t units = aligned_size(p.rows * sizeof(float));
  char *scratch = aligned_alloc(kLine, halves + units + aligned_size(count * sizeof(Matrix)));
  if (scratch == NULL) return failed(call, "no memory for the rows of an int8 product");
  p.halves = (int16_t *)scratch;
  p.units = (float *)(scratch + halves);
  Matrix *matrices = (Matrix *)(scratch + halves + units);
  p.matrices = matrices;
  int64_t workers = count_workers(call), parts = 0;
  for (int64_t i = 0; i < count; ++i) {
    const XLA_FFI_Buffer *values = argument(call, 1 + 2 * i);
    matrices[i] = (Matrix){
        .values = values->data,
        .scales = argument(call, 2 + 2 * i)->data,
        .y = result(call, i)->data,
        .out = values->dims[0],
        .first_part = parts,
    };
    parts += (values->dims[0] + kMatrixRows - 1) / kMatrixRows;
  }
  if (p.rows == 1) {
    round_row(&p, 0, 0);
  } else {
    run_parts(call, workers, p.rows, round_row, &p);
  }
  int64_t row_parts = (p.rows + kRows - 1) / kRows;
  run_parts(call, workers, parts * row_parts, multiply_part, &p);
  free(scratch);
  return NULL;
}

// --- Products with matrices of floating point ------------------------------------------

enum {
  kDepth = 8,   // rows of a matrix that are read side by side
  kShares = 2,  // of a matrix's rows, for each worker
  kSums = 4,    // of one product with a row of a table, side by side
};

typedef struct {
  const char *values;  // [in, out], or [out, in]
  float *y;            // [rows, out]
  int64_t out;
  int64_t first;  // of its sums among those of a share
} FloatMatrix;

typedef struct {
  const float *x;  // [rows, in]
  int64_t rows, in;
  const FloatMatrix *matrices;
  float *sums;     // [shares, total]: for each matrix [rows, out]
  int64_t shares, total;
} FloatProduct;

typedef uint16_t Halves __attribute__((vector_size(VECTOR / 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(VECTOR)));

#define INLINE static inline __attribute__((always_inline))
// Of how vectors are handed over between functions: these are never called.
#pragma GCC diagnostic ignored "-Wpsabi"

// Numbers of a matrix, float32 or bfloat16, which is the upper half of a float32.

INLINE Lanes lanes_at(const char *values, int64_t i, bool is_half) {
  if (!is_half) return *(const Lanes *)(values + i * sizeof(float));
  Halves halves = *(const Halves *)(values + i * sizeof(uint16_t));
  return (Lanes)(__builtin_convertvector(halves, Words) << 16);
}

INLINE float number_at(const char *values, int64_t i, bool is_half) {
  float number;
  if (!is_half) {
    memcpy(&number, values + i * sizeof(float), sizeof(float));
    return number;
  }
  uint16_t half;
  memcpy(&half, values + i * sizeof(uint16_t), sizeof(half));
  uint32_t bits = (uint32_t)half << 16;
  memcpy(&number, &bits, sizeof(float));
  return number;
}

// Adds to y what depth rows of a matrix [in, out] give, from i.
INLINE void add_rows(const FloatProduct *p, const FloatMatrix *m, int64_t i, int64_t depth,
                     float *y, bool is_half) {
  int64_t size = is_half ? sizeof(uint16_t) : sizeof(float), j = 0;
  for (; j + kLanes <= m->out && depth == kDepth; j += kLanes) {
    Lanes w[kDepth];
    for (int d = 0; d < kDepth; ++d) {
      int64_t at = (i + d) * m->out + j;
      w[d] = lanes_at(m->values, at, is_half);
      __builtin_prefetch(m->values + (at + kDepth * m->out) * size, 0, 0);
    }
    for (int64_t r = 0; r < p->rows; ++r) {
      Lanes *here = (Lanes *)(y + r * m->out + j), sum = *here;
      const float *x = p->x + r * p->in + i;
      for (int d = 0; d < kDepth; ++d) sum += x[d] * w[d];
      *here = sum;
    }
  }
  for (; j < m->out; ++j)
    for (int64_t r = 0; r < p->rows; ++r)
      for (int64_t d = i; d < i + depth; ++d)
        y[r * m->out + j] +=
            p->x[r * p->in + d] * number_at(m->values, d * m->out + j, is_half);
}

// A part is a share of a matrix's rows, so that each worker reads memory in one line;
// it has sums of its own, which are added up in the end, always in the same order.
INLINE void multiply_rows(const FloatProduct *p, int64_t part, bool is_half) {
  const FloatMatrix *m = p->matrices + part / p->shares;
  int64_t share = part % p->shares, blocks = (p->in + kDepth - 1) / kDepth;
  int64_t begin = blocks * share / p->shares * kDepth;
  int64_t end = smaller(p->in, blocks * (share + 1) / p->shares * kDepth);
  float *y = p->sums + share * p->total + m->first;
  memset(y, 0, p->rows * m->out * sizeof(float));
  for (int64_t i = begin; i < end; i += kDepth)
    add_rows(p, m, i, smaller(kDepth, end - i), y, is_half);
}

static void multiply_float_rows(const void *job, int64_t part, int64_t worker) {
  (void)worker;
  multiply_rows(job, part, false);
}

static void multiply_half_rows(const void *job, int64_t part, int64_t worker) {
  (void)worker;
  multiply_rows(job, part, true);
}

static void add_shares(const FloatProduct *p, const FloatMatrix *m) {
  int64_t count = p->rows * m->out;
  memcpy(m->y, p->sums + m->first, count * sizeof(float));
  for (int64_t share = 1; share < p->shares; ++share) {
    const float *restrict sums = p->sums + share * p->total + m->first;
    float *restrict y = m->y;
    for (int64_t j = 0; j < count; ++j) y[j] += sums[j];
  }
}

static bool is_half(const XLA_FFI_Buffer *matrix) {
  return matrix->dtype == XLA_FFI_DataType_BF16;
}

// x f32 [rows, in]; then matrices [in, out], all of them f32 or all bf16. Returns, for
// each, f32 [rows, out].
XLA_FFI_Error *haiku_mqa_float_dots(XLA_FFI_CallFrame *call) {
  if (answered_metadata(call)) return NULL;
  const XLA_FFI_Buffer *x = argument(call, 0);
  int64_t count = call->rets.size, workers = count_workers(call), total = 0;
  FloatMatrix matrices[count];
  for (int64_t i = 0; i < count; ++i) {
    const XLA_FFI_Buffer *values = argument(call, 1 + i);
    matrices[i] = (FloatMatrix){.values = values->data,
                                .y = result(call, i)->data,
                                .out = values->dims[1],
                                .first = total};
    total += aligned_size(x->dims[0] * values->dims[1] * sizeof(float)) / sizeof(float);
  }
  FloatProduct p = {.x = x->data,
                    .rows = x->dims[0],
                    .in = x->dims[1],
                    .matrices = matrices,
                    .shares = workers == 1 ? 1 : kShares * workers,
                    .total = total};
  p.sums = aligned_alloc(kLine, p.shares * total * sizeof(float));
  if (p.sums == NULL) return failed(call, "no memory for the sums of products");
  Part *run = is_half(argument(call, 1)) ? multiply_half_rows : multiply_float_rows;
  run_parts(call, workers, count * p.shares, run, &p);
  for (int64_t i = 0; i < count; ++i) add_shares(&p, &matrices[i]);
  free(p.sums);
  return NULL;
}

// Returns the product of a row of x with one of a table.
static float dot_halves(const float *x, const char *halves, int64_t size) {
  enum { kStep = kSums * kLanes };
  Lanes sums[kSums] = {0};
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep)
    for (int s = 0; s < kSums; ++s)
      sums[s] += *(const Lanes *)(x + i + s * kLanes) *
                 lanes_at(halves, i + s * kLanes, true);
  float sum = 0.0f;
  for (int l = 0; l < kLanes; ++l)
    for (int s = 0; s < kSums; ++s) sum += sums[s][l];
  for (; i < size; ++i) sum += x[i] * number_at(halves, i, true);
  return sum;
}

static void multiply_table(const void *job, int64_t part, int64_t worker) {
  (void)worker;
  const FloatProduct *p = job;
  const FloatMatrix *m = p->matrices;
  int64_t begin = part * kMatrixRows, end = smaller(m->out, begin + kMatrixRows);
  for (int64_t out = begin; out < end; ++out)
    for (int64_t r = 0; r < p->rows; ++r)
      m->y[r * m->out + out] = dot_halves(
          p->x + r * p->in, m->values + out * p->in * sizeof(uint16_t), p->in);
}

// x f32 [rows, in], table bf16 [out, in]. Returns f32 [rows, out].
XLA_FFI_Error *haiku_mqa_table_dot(XLA_FFI_CallFrame *call) {
  if (answered_metadata(call)) return NULL;
  const XLA_FFI_Buffer *x = argument(call, 0), *table = argument(call, 1);
  FloatMatrix matrix = {
      .values = table->data, .y = result(call, 0)->data, .out = table->dims[0]};
  FloatProduct p = {
      .x = x->data, .rows = x->dims[0], .in = x->dims[1], .matrices = &matrix};
  int64_t parts = (matrix.out + kMatrixRows - 1) / kMatrixRows;
  run_parts(call, count_workers(call), parts, multiply_table, &p);
  return NULL;
}

// --- Attention -------------------------------------------------------------------------

// A part is a band of a key/value head's queries and a share of its keys, so that all
// workers have something to read where queries are few (Dao et al. 2023,
// Flash-Decoding). It goes through its keys a block at a time, which stays in the
// caches for all of the band, and scales what it has by each new largest logit (Milakov
// and Gimelshein 2018). Of each query it leaves: the sum of the values, weighted; the
// largest logit; the sum of the weights.

enum {
  kKeys = 64,  // of a block of keys that is turned, so that keys lie side by side
  kValues = kSide * kLanes,  // numbers that are summed together
  kBand = 16,  // queries of a band, at most
  kFew = 8,    // queries of a key/value head, below which turning keys costs more
  kLeast = 4,  // blocks of keys that are worth a part of their own
  kState = 2,  // the largest logit, the sum of the weights
};

typedef struct {
  const float *query;  // [B, T, N, H]
  const float *key;    // [B, K, S, H]
  const float *value;  // [B, K, S, V]
  const uint8_t *mask; // [B, T, S], 0 or 1; of bool, loops are not made vectors
  float *output;       // [B, T, N, V]
  float *turned;       // [B, K, blocks, H, kKeys]; of one band, [workers, H, kKeys]
  float *running;      // [B, K, bands, shares, kBand, V + kState]; of one share,
                       // [workers, kBand, V + kState]
  int64_t kv_heads, group, queries, length, size, value_size;
  int64_t blocks;  // of keys
  int64_t bands, rows;  // of a key/value head's queries, T * G of them, and of a band
  int64_t shares;  // of a key/value head's keys
  float scale;
} Attention;

// Within two units in the last place, zero far below, and NaN where x is.
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  float power = rintf(x * 1.44269504f);
  float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
  float sum = 1.9875691500e-4f;  // Cephes' polynomial
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  int32_t bits = ((int32_t)power + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return sum * scale;
}

// Turns a square of kLanes by kLanes numbers, by pairs of rows that trade lanes.
#define TRADE(width)                                                                \
  for (int i = 0; i < kLanes; ++i)                                                  \
    if ((i & width) == 0) {                                                         \
      Lanes a = rows[i], b = rows[i + width];                                       \
      rows[i] = __builtin_shufflevector(a, b, PICK(width, 0));                      \
      rows[i + width] = __builtin_shufflevector(a, b, PICK(width, 1));              \
    }
#define LANE(l, width, odd)                                                         \
  ((l & width) ? kLanes + (odd ? l : l - width) : (odd ? l + width : l))
#define FOUR(l, width, odd)                                                         \
  LANE(l, width, odd), LANE(l + 1, width, odd), LANE(l + 2, width, odd),            \
      LANE(l + 3, width, odd)
#define EIGHT(l, width, odd) FOUR(l, width, odd), FOUR(l + 4, width, odd)
#if VECTOR == 64
#define PICK(width, odd) EIGHT(0, width, odd), EIGHT(8, width, odd)
#define TRADE_ALL TRADE(8) TRADE(4) TRADE(2) TRADE(1)
#elif VECTOR == 32
#define PICK(width, odd) EIGHT(0, width, odd)
#define TRADE_ALL TRADE(4) TRADE(2) TRADE(1)
#else
#define PICK(width, odd) FOUR(0, width, odd)
#define TRADE_ALL TRADE(2) TRADE(1)
#endif

static inline void turn_square(const float *key, int64_t size, float *turned) {
  Lanes rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = *(const Lanes *)(key + i * size);
  TRADE_ALL
  for (int i = 0; i < kLanes; ++i) *(Lanes *)(turned + i * kKeys) = rows[i];
}

// Turns [count, size] of keys into [size, kKeys], with zeros for those that lack.
static void turn_keys(const float *key, int64_t count, int64_t size, float *turned) {
  int64_t whole = count == kKeys ? size / kLanes * kLanes : 0;
  for (int64_t h = 0; h < whole; h += kLanes)
    for (int64_t s = 0; s < kKeys; s += kLanes)
      turn_square(key + s * size + h, size, turned + h * kKeys + s);
  for (int64_t h = whole; h < size; ++h) {
    for (int64_t s = 0; s < count; ++s) turned[h * kKeys + s] = key[s * size + h];
    for (int64_t s = count; s < kKeys; ++s) turned[h * kKeys + s] = 0.0f;
  }
}

static void turn_block(const void *job, int64_t part, int64_t worker) {
  (void)worker;
  const Attention *a = job;
  int64_t pair = part / a->blocks, first = part % a->blocks * kKeys;
  turn_keys(a->key + (pair * a->length + first) * a->size,
            smaller(kKeys, a->length - first), a->size, a->turned + part * a->size * kKeys);
}

// Writes the products of kTile queries with some of a block's turned keys.
static void score_side(const float *const *queries, const float *turned, int64_t size,
                       float *weights, int64_t stride) {
  Lanes sums[kTile][kSide] = {0};
  for (int64_t h = 0; h < size; ++h) {
    Lanes keys[kSide];
    for (int c = 0; c < kSide; ++c) keys[c] = ((const Lanes *)(turned + h * kKeys))[c];
    for (int r = 0; r < kTile; ++r)
      for (int c = 0; c < kSide; ++c) sums[r][c] += queries[r][h] * keys[c];
  }
  for (int r = 0; r < kTile; ++r) memcpy(weights + r * stride, sums[r], sizeof(sums[r]));
}

static void score_block(const float *const *queries, const float *turned, int64_t size,
                        float *weights, int64_t stride) {
  for (int64_t s = 0; s < kKeys; s += kSide * kLanes)
    score_side(queries, turned + s, size, weights + s, stride);
}

static void score_keys(const float *query, const float *key, int64_t size, int64_t count,
                       float *weights) {
  for (int64_t s = 0; s < count; ++s) {
    float sum = 0.0f;
    for (int64_t h = 0; h < size; ++h) sum += query[h] * key[s * size + h];
    weights[s] = sum;
  }
}

// Returns the largest of some numbers that are not NaN. Lane by lane, since the order
// matters where one is: the compiler would make no vectors of a single run.
static float greatest(const float *x, int64_t count) {
  Lanes most = (Lanes){0} - INFINITY;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Lanes here = *(const Lanes *)(x + i);
    Masks is_more = here > most;
    most = (Lanes)((is_more & (Masks)here) | (~is_more & (Masks)most));
  }
  float largest = -INFINITY;
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  for (int l = 0; l < kLanes; ++l) largest = most[l] > largest ? most[l] : largest;
  return largest;
}

// Makes a block's logits into weights, beside the largest logit so far.
static void weigh(float *restrict weights, const uint8_t *restrict mask, int64_t count,
                  float scale, float *restrict sums, int64_t value_size) {
  float *state = sums + value_size;
  for (int64_t s = 0; s < count; ++s)
    weights[s] = mask[s] ? weights[s] * scale : -INFINITY;
  float before = state[0], largest = greatest(weights, count);
  largest = largest > before ? largest : before;
  // Of logits that all are minus infinity, none is to be told from another yet.
  float origin = largest == -INFINITY ? 0.0f : largest, total = 0.0f;
  for (int64_t s = 0; s < count; ++s) {
    float weight = exponential(weights[s] - origin);
    weights[s] = mask[s] ? weight : 0.0f;
    total += weights[s];
  }
  if (largest != before) {
    float factor = exponential(before - origin);
    for (int64_t v = 0; v < value_size; ++v) sums[v] *= factor;
    state[1] *= factor;
  }
  state[0] = largest;
  state[1] += total;
}

// Adds what kTile queries make of kValues numbers of the values.
static void sum_values(const float *weights, int64_t stride, const float *value,
                       int64_t value_size, int64_t first, int64_t last,
                       float *const *outputs, int64_t rows) {
  Lanes sums[kTile][kSide];
  for (int64_t r = 0; r < kTile; ++r) memcpy(sums[r], outputs[r], sizeof(sums[r]));
  for (int64_t s = first; s < last; ++s) {
    Lanes values[kSide];
    for (int c = 0; c < kSide; ++c)
      values[c] = ((const Lanes *)(value + s * value_size))[c];
    for (int r = 0; r < kTile; ++r)
      for (int c = 0; c < kSide; ++c)
        sums[r][c] += weights[r * stride + s] * values[c];
  }
  for (int64_t r = 0; r < rows; ++r) memcpy(outputs[r], sums[r], sizeof(sums[r]));
}

// Adds what up to kTile queries make of a run of values.
static void add_values(const float *weights, int64_t stride, const float *value,
                       int64_t value_size, int64_t first, int64_t last,
                       float *const *outputs, int64_t rows) {
  int64_t v = 0;
  for (; v + kValues <= value_size; v += kValues) {
    float *here[kTile];
    for (int64_t r = 0; r < kTile; ++r) here[r] = outputs[r] + v;
    sum_values(weights, stride, value + v, value_size, first, last, here, rows);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t rest = v; rest < value_size; ++rest) {
      float sum = 0.0f;
      for (int64_t s = first; s < last; ++s)
        sum += weights[r * stride + s] * value[s * value_size + rest];
      outputs[r][rest] += sum;
    }
}

// Finds where the keys that a query sees begin and end, eight at a time.
static void find_seen(const uint8_t *mask, int64_t length, int64_t *begin, int64_t *end) {
  int64_t first = 0, last = length;
  uint64_t eight = 0;
  for (; first + 8 <= last; first += 8) {
    memcpy(&eight, mask + first, 8);
    if (eight != 0) break;
  }
  while (first < last && !mask[first]) ++first;
  for (; last - 8 >= first; last -= 8) {
    memcpy(&eight, mask + last - 8, 8);
    if (eight != 0) break;
  }
  while (last > first && !mask[last - 1]) --last;
  *begin = first, *end = last;
}

// The query at one of a key/value head's T * G places: its vector and its mask's row.
static int64_t query_at(const Attention *a, int64_t pair, int64_t i) {
  int64_t batch = pair / a->kv_heads, head = pair % a->kv_heads * a->group + i % a->group;
  return (batch * a->queries + i / a->group) * a->kv_heads * a->group + head;
}

static const uint8_t *mask_at(const Attention *a, int64_t pair, int64_t i) {
  return a->mask + (pair / a->kv_heads * a->queries + i / a->group) * a->length;
}

// Where the keys begin and end that any query of a band sees.
static void find_all_seen(const Attention *a, int64_t pair, int64_t row, int64_t rows,
                          int64_t *first, int64_t *last) {
  *first = a->length, *last = 0;
  for (int64_t t = row / a->group; t <= (row + rows - 1) / a->group; ++t) {
    int64_t begin, end;
    find_seen(mask_at(a, pair, t * a->group), a->length, &begin, &end);
    if (begin == end) continue;
    *first = smaller(*first, begin);
    *last = end > *last ? end : *last;
  }
  *first = smaller(*first, *last);
}

// Writes the products of a band's queries with a block of keys, [rows, kKeys].
static void score_band(const Attention *a, int64_t pair, int64_t block, int64_t worker,
                       const float *const *queries, int64_t rows, float *weights) {
  int64_t s = block * kKeys, count = smaller(kKeys, a->length - s);
  const float *key = a->key + (pair * a->length + s) * a->size;
  bool is_turned = a->bands > 1;
  if (!is_turned && rows < kFew) {
    for (int64_t r = 0; r < rows; ++r)
      score_keys(queries[r], key, a->size, count, weights + r * kKeys);
    return;
  }
  int64_t at = is_turned ? pair * a->blocks + block : worker;
  float *turned = a->turned + at * a->size * kKeys;
  if (!is_turned) turn_keys(key, count, a->size, turned);
  for (int64_t r = 0; r < rows; r += kTile)
    score_block(queries + r, turned, a->size, weights + r * kKeys, kKeys);
}

// Writes the output of one query: what the shares of its keys left, put together.
static void join_shares(const Attention *a, const float *first, float *output) {
  int64_t size = a->value_size, stride = kBand * (size + kState);
  float largest = -INFINITY, total = 0.0f;
  for (int64_t share = 0; share < a->shares; ++share) {
    const float *state = first + share * stride + size;
    largest = state[0] > largest ? state[0] : largest;
  }
  memset(output, 0, size * sizeof(float));
  for (int64_t share = 0; share < a->shares; ++share) {
    const float *sums = first + share * stride;
    if (sums[size + 1] == 0.0f) continue;  // it saw nothing
    // Where all logits are minus infinity, or one is infinite, NaN, as it is elsewhere.
    float factor = exponential(sums[size] - largest);
    for (int64_t v = 0; v < size; ++v) output[v] += factor * sums[v];
    total += factor * sums[size + 1];
  }
  float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t v = 0; v < size; ++v) output[v] *= inverse;
}

static void join_band(const Attention *a, int64_t pair, int64_t band, const float *running) {
  int64_t row = band * a->rows, rows = smaller(a->rows, a->queries * a->group - row);
  for (int64_t r = 0; r < rows; ++r)
    join_shares(a, running + r * (a->value_size + kState),
                a->output + query_at(a, pair, row + r) * a->value_size);
}

static void attend_part(const void *job, int64_t part, int64_t worker) {
  const Attention *a = job;
  int64_t share = part % a->shares, band = part / a->shares % a->bands;
  int64_t pair = part / a->shares / a->bands;  // of a row of the batch and a head
  int64_t row = band * a->rows, rows = smaller(a->rows, a->queries * a->group - row);
  int64_t stride = a->value_size + kState;
  float *running = a->running + (a->shares == 1 ? worker : part) * kBand * stride;
  float weights[kBand * kKeys] __attribute__((aligned(64)));
  const float *queries[kBand];
  float *sums[kBand];
  for (int64_t r = 0; r < kBand; ++r) {
    int64_t i = row + smaller(r, rows - 1);  // the last one again, for what is missing
    queries[r] = a->query + query_at(a, pair, i) * a->size;
    sums[r] = running + r * stride;
  }
  memset(running, 0, rows * stride * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) sums[r][a->value_size] = -INFINITY;
  int64_t first, last;
  find_all_seen(a, pair, row, rows, &first, &last);
  int64_t before = first / kKeys, blocks = (last + kKeys - 1) / kKeys - before;
  int64_t end = before + blocks * (share + 1) / a->shares;
  for (int64_t b = before + blocks * share / a->shares; b < end; ++b) {
    int64_t s = b * kKeys > first ? b * kKeys : first;
    int64_t count = smaller((b + 1) * kKeys, last) - s;
    float *seen = weights + s - b * kKeys;
    score_band(a, pair, b, worker, queries, rows, weights);
    for (int64_t r = 0; r < rows; ++r)
      weigh(seen + r * kKeys, mask_at(a, pair, row + r) + s, count, a->scale, sums[r],
            a->value_size);
    const float *value = a->value + (pair * a->length + s) * a->value_size;
    for (int64_t r = 0; r < rows; r += kTile)
      add_values(seen + r * kKeys, kKeys, value, a->value_size, 0, count, sums + r,
                 smaller(kTile, rows - r));
  }
  if (a->shares == 1) join_band(a, pair, band, running);
}

// Parts a key/value head's queries into bands, and its keys into shares.
static void part_attention(Attention *a, int64_t pairs, int64_t workers) {
  int64_t rows = a->queries * a->group;
  a->bands = (rows + kBand - 1) / kBand;
  a->rows = ((rows + a->bands - 1) / a->bands + kTile - 1) / kTile * kTile;
  a->bands = (rows + a->rows - 1) / a->rows;
  int64_t parts = pairs * a->bands;
  int64_t wanted = workers == 1 ? 1 : (2 * workers + parts - 1) / parts;
  int64_t worth = a->blocks / kLeast;
  a->shares = worth < 1 ? 1 : smaller(wanted, worth);
}

// query f32 [B, T, N, H], key f32 [B, K, S, H], value f32 [B, K, S, V], mask pred
// [B, T, S], scale f32 []. Returns f32 [B, T, N, V].
XLA_FFI_Error *haiku_mqa_attend(XLA_FFI_CallFrame *call) {
  if (answered_metadata(call)) return NULL;
  const XLA_FFI_Buffer *query = argument(call, 0), *key = argument(call, 1);
  const XLA_FFI_Buffer *value = argument(call, 2);
  int64_t pairs = key->dims[0] * key->dims[1];
  Attention a = {
      .query = query->data,
      .key = key->data,
      .value = value->data,
      .mask = argument(call, 3)->data,
      .scale = *(const float *)argument(call, 4)->data,
      .output = result(call, 0)->data,
      .kv_heads = key->dims[1],
      .group = query->dims[2] / key->dims[1],
      .queries = query->dims[1],
      .length = key->dims[2],
      .size = query->dims[3],
      .value_size = value->dims[3],
      .blocks = (key->dims[2] + kKeys - 1) / kKeys,
  };
  int64_t workers = count_workers(call);
  part_attention(&a, pairs, workers);
  int64_t parts = pairs * a.bands * a.shares;
  int64_t blocks = a.bands > 1 ? pairs * a.blocks : workers;
  size_t turned = aligned_size(blocks * a.size * kKeys * sizeof(float));
  size_t running = (a.shares > 1 ? parts : workers) * kBand * (a.value_size + kState);
  char *scratch = aligned_alloc(kLine, turned + aligned_size(running * sizeof(float)));
  if (scratch == NULL) return failed(call, "no memory for the weights of attention");
  a.turned = (float *)scratch;
  a.running = (float *)(scratch + turned);
  if (a.bands > 1) run_parts(call, workers, pairs * a.blocks, turn_block, &a);
  run_parts(call, workers, parts, attend_part, &a);
  for (int64_t i = 0; a.shares > 1 && i < pairs * a.bands; ++i)
    join_band(&a, i / a.bands, i % a.bands,
              a.running + i * a.shares * kBand * (a.value_size + kState));
  free(scratch);
  return NULL;
}
