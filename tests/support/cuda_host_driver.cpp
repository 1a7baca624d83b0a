// A CUDA driver of one device whose kernels run on the CPU at once: what multiopt calls of libcuda, and no more.
// A module's code is the path of a library made with cuda_host.h. Calls without a current context fail, as they do.
#include <cstddef>
#include <cstring>
#include <dlfcn.h>

typedef long long i64;
static int depth, is_capturing;
static i64 counts[2];
static const int INVALID_CONTEXT = 201, NOT_FOUND = 500;

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &depth; return 0; }
int cuCtxPushCurrent(void* context) { depth += context == &depth; return context == &depth ? 0 : INVALID_CONTEXT; }
int cuCtxPopCurrent(void** context) { *context = &depth; --depth; return 0; }
int cuModuleLoadData(void** module, const char* code) {
  if (depth != 1) return INVALID_CONTEXT;
  *module = dlopen(code, RTLD_NOW | RTLD_LOCAL);
  return *module ? 0 : 200;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (depth != 1) return INVALID_CONTEXT;
  const char** own = (const char**)dlsym(module, "kernel_name");
  *function = dlsym(module, "run");
  return own && *function && strcmp(*own, name) == 0 ? 0 : NOT_FOUND;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  if (depth != 1) return INVALID_CONTEXT;
  if (gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || stream || extra || !gx) return 1;
  i64 seen[2];
  ((void (*)(void**, i64, i64, i64*))function)(arguments, gx, bx, seen);
  counts[0] += seen[0];
  counts[1] += seen[1];
  return 0;
}
int cuMemsetD32Async(unsigned long long address, unsigned value, size_t n, void* stream) {
  if (depth != 1 || stream) return INVALID_CONTEXT;
  for (size_t k = 0; k < n; ++k) ((unsigned*)address)[k] = value;
  return 0;
}
int cuStreamIsCapturing(void*, int* status) {
  *status = is_capturing;
  return depth == 1 ? 0 : INVALID_CONTEXT;
}
// How cuda.bindings finds the others; those that are missing fail when they are called.
int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
#define ENTRY(f) {#f, (void*)f}
  static const struct { const char* name; void* function; } entries[] = {
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetAttribute),
    ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuCtxPushCurrent), ENTRY(cuCtxPopCurrent), ENTRY(cuModuleLoadData),
    ENTRY(cuModuleGetFunction), ENTRY(cuLaunchKernel), ENTRY(cuMemsetD32Async), ENTRY(cuStreamIsCapturing),
    ENTRY(cuGetProcAddress_v2),
  };
  *function = nullptr;
  for (auto& entry : entries)
    if (strcmp(entry.name, name) == 0) *function = entry.function;
  if (status) *status = !*function;
  return *function ? 0 : NOT_FOUND;
}
// Of the tests' own.
void set_capturing(int value) { is_capturing = value; }
void count_accesses(i64* to) { to[0] = counts[0]; to[1] = counts[1]; }
}
