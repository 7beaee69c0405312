// Launches of a layer's kernels on a GPU, one way, in one call: what ../launches.py does, without Python between them.
//
// Kernels are compiled and loaded by Triton. Here they are launched by the driver's own function, which is found in the
// process, so that nothing of CUDA is needed to compile this. The operators use torch's stable ABI.

#include <dlfcn.h>

#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::stable::Tensor;

// The driver's, of cuda.h; 0 is success.
typedef int (*launch_kernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra);
typedef int (*parameter_info)(void* function, size_t number, size_t* offset, size_t* size);
typedef int (*current_context)(void** context);

struct driver {
    launch_kernel launch = nullptr;
    parameter_info parameter = nullptr;
    current_context context = nullptr;
    bool whole() const { return launch && parameter && context; }
};

const driver& the_driver() {
    static const driver found = [] {
        driver d;
        if (void* const library = dlopen("libcuda.so.1", RTLD_LAZY)) {
            d.launch = (launch_kernel)dlsym(library, "cuLaunchKernel");
            d.parameter = (parameter_info)dlsym(library, "cuFuncGetParamInfo");
            d.context = (current_context)dlsym(library, "cuCtxGetCurrent");
        }
        return d;
    }();
    return found;
}

// A program is int64 numbers: how many tensors; then of each launch HEAD numbers, and PART of each parameter: its size
// in bytes; the number of the tensor whose address it is, or -1; bytes behind that address, or the value.
enum head { function, grid_x, grid_y, grid_z, threads, shared_bytes, parameters, HEAD };
enum part { size, tensor, value, PART };
constexpr int64_t MOST = 64;  // parameters of a kernel, and tensors
constexpr uint64_t ALIGNED = 16;

const int64_t* numbers(const Tensor& program) {
    STD_TORCH_CHECK(program.is_cpu() && program.numel() > 0, "en_norm: expected a program on the CPU");
    return (const int64_t*)program.data_ptr();
}

// use(head, parameters) for each launch of a program, until one gives false. Returns: whether none did.
template <class Use> bool each_launch(const Tensor& program, Use use) {
    const int64_t *at = numbers(program) + 1, *const end = numbers(program) + program.numel();
    for (; at < end; at += HEAD + PART * at[parameters])
        if (!use(at, at + HEAD)) return false;
    return true;
}

// Tells whether the driver knows the functions of a program by just these parameters.
bool agrees(const Tensor& program) {
    const driver& d = the_driver();
    return d.whole() && *numbers(program) <= MOST &&
           each_launch(program, [&](const int64_t* head, const int64_t* parts) {
               void* const kernel = (void*)head[function];
               const int64_t count = head[parameters];
               size_t offset, bytes;
               for (int64_t i = 0; i < count; ++i)
                   if (d.parameter(kernel, i, &offset, &bytes) || int64_t(bytes) != parts[PART * i + size]) return false;
               return count <= MOST && d.parameter(kernel, count, &offset, &bytes) != 0;
           });
}

// Launches a program on tensors, and tells whether it could: not on addresses that are not aligned, for which kernels
// are compiled apart, nor in a thread without a context, which Triton makes.
bool launch(const std::vector<Tensor>& tensors, const Tensor& program, int64_t stream) {
    const driver& d = the_driver();
    const int64_t count = tensors.size();
    STD_TORCH_CHECK(d.whole() && count <= MOST && count == *numbers(program), "en_norm: expected a program's tensors");
    uint64_t address[MOST], all = 0;
    for (int64_t i = 0; i < count; ++i) all |= address[i] = (uint64_t)tensors[i].data_ptr();
    void* context = nullptr;
    if (all % ALIGNED || d.context(&context) || !context) return false;
    return each_launch(program, [&](const int64_t* head, const int64_t* parts) {
        uint64_t values[MOST];
        void* pointers[MOST];
        for (int64_t i = 0; i < head[parameters]; ++i) {
            const int64_t* const part = parts + PART * i;
            values[i] = uint64_t(part[value]) + (part[tensor] < 0 ? 0 : address[part[tensor]]);
            pointers[i] = &values[i];
        }
        const int error = d.launch((void*)head[function], head[grid_x], head[grid_y], head[grid_z], head[threads], 1,
            1, head[shared_bytes], (void*)stream, pointers, nullptr);
        STD_TORCH_CHECK(error == 0, "en_norm: the driver's error ", error, " at a launch");
        return true;
    });
}

}  // namespace

extern "C" int en_launches() { return 1; }

STABLE_TORCH_LIBRARY(en_norm_gpu, m) {
    m.def("agrees(Tensor program) -> bool");
    m.def("launch(Tensor[] tensors, Tensor program, int stream) -> bool");
}

// Implicit, so that torch does not look for a formula of autograd.
STABLE_TORCH_LIBRARY_IMPL(en_norm_gpu, CompositeImplicitAutograd, m) {
    m.impl("agrees", TORCH_BOX(&agrees));
    m.impl("launch", TORCH_BOX(&launch));
}
