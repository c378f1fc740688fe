// A device of torch that lives in the host's memory and is as strict as a GPU.
//
// Its operations run on the CPU, one after the other, with the CPU's numbers. Like CUDA it refuses operations on tensors of two
// devices, and fused optimizers whose states do not lie in memory as their weights do. An observer in Python hears of everything for
// which the host of a GPU would wait: copies between host and device (with their bytes, whether they are asynchronous, and whether
// the host's side is pinned) and operations whose result decides what the host does next.
#include <torch/extension.h>

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using at::IValue;
using at::Tensor;
using torch::jit::Stack;

constexpr auto kSecond = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kSecond, 0);

bool is_second(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kSecond;
}

// ---- memory

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes ? std::malloc(bytes) : nullptr;
    return {block, block, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* target, const void* source, size_t bytes) const override { std::memcpy(target, source, bytes); }
};

// The host's memory that a GPU could read while the host goes on. It remembers its blocks.
struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    char* block = static_cast<char*>(std::malloc(bytes ? bytes : 1));
    std::lock_guard<std::mutex> guard(lock());
    blocks()[block] = bytes;
    return {block, block, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t bytes) const override { std::memcpy(target, source, bytes); }

  static bool holds(const void* address) {
    std::lock_guard<std::mutex> guard(lock());
    auto next = blocks().upper_bound(static_cast<const char*>(address));
    if (next == blocks().begin()) return false;
    auto block = std::prev(next);
    return static_cast<const char*>(address) < block->first + block->second;
  }

 private:
  static std::mutex& lock() {
    static std::mutex mutex;
    return mutex;
  }
  static std::map<const char*, size_t>& blocks() {
    static std::map<const char*, size_t> all;
    return all;
  }
  static void release(void* block) {
    {
      std::lock_guard<std::mutex> guard(lock());
      blocks().erase(static_cast<const char*>(block));
    }
    std::free(block);
  }
};

DeviceMemory device_memory;
PinnedMemory pinned_memory;
REGISTER_ALLOCATOR(kSecond, &device_memory);

// ---- what torch asks of a device: it has one, with one stream, on which everything is done at once

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kSecond;
  c10::DeviceType type() const override { return kSecond; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void grow(const c10::Storage& storage, size_t bytes) {
  c10::DataPtr larger = device_memory.allocate(bytes);
  if (size_t both = std::min(bytes, storage.nbytes())) std::memcpy(larger.get(), storage.data(), both);
  storage.unsafeGetStorageImpl()->set_data_ptr(std::move(larger));
  storage.unsafeGetStorageImpl()->set_nbytes(bytes);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* address) const override { return PinnedMemory::holds(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override { grow(storage, bytes); }
};
Hooks hooks;

// ---- the observer

PyObject* observer = nullptr;  // called with (kind, operation, bytes); kept for the life of the process

void note(const char* kind, const std::string& operation, size_t bytes = 0) {
  if (!observer) return;
  py::gil_scoped_acquire gil;
  py::handle function(observer);
  function(kind, operation, bytes);
}

void note_copy(const Tensor& target, const Tensor& source, bool asynchronous, const std::string& operation) {
  const bool to_device = is_second(target) && !is_second(source), to_host = is_second(source) && !is_second(target);
  if (!(to_device || to_host) || source.numel() == 0) return;
  const Tensor& host = to_device ? source : target;
  const bool free = asynchronous && PinnedMemory::holds(host.storage().data());
  note(to_device ? (free ? "to device" : "to device, waiting") : (free ? "to host" : "to host, waiting"), operation,
       source.numel() * source.element_size());
}

// Operations whose output has a size, or a truth, that the host must read.
const std::set<std::string> kWaiting = {
    "aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::equal", "aten::_unique", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::bincount", "aten::repeat_interleave", "aten::histc",
};

// ---- the same memory, seen from the other device

c10::Storage storage_over(const c10::Storage& storage, c10::Device device, c10::Allocator* allocator) {
  auto* owner = new c10::Storage(storage);
  auto release = [](void* context) { delete static_cast<c10::Storage*>(context); };
  c10::DataPtr data(const_cast<void*>(storage.data()), owner, release, device);
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, /*resizable=*/true);
}

Tensor tensor_over(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return tensor;
}

// Device tensors as CPU tensors for one operation, and its results back.
class OnHost {
 public:
  Tensor operator()(const Tensor& tensor) {
    if (!is_second(tensor)) return tensor;
    Tensor host = tensor_over(
        storage_over(tensor.storage(), c10::Device(c10::kCPU), c10::GetAllocator(c10::kCPU)), c10::DispatchKey::CPU, tensor);
    host._set_conj(tensor.is_conj());
    host._set_neg(tensor.is_neg());
    pairs_.emplace_back(tensor, host);
    return host;
  }

  // Views share the storage of their base, so that what is written to one is seen in the other.
  Tensor back(const Tensor& host) const {
    if (!host.defined() || is_second(host)) return host;
    for (const auto& pair : pairs_)
      if (pair.second.storage().unsafeGetStorageImpl() == host.storage().unsafeGetStorageImpl())
        return marked(tensor_over(pair.first.storage(), c10::DispatchKey::PrivateUse1, host), host);
    return marked(tensor_over(storage_over(host.storage(), kDevice, &device_memory), c10::DispatchKey::PrivateUse1, host), host);
  }

  // After an operation that may have given its operands another size or other memory.
  void settle() const {
    for (const auto& [device, host] : pairs_) {
      auto* impl = device.unsafeGetTensorImpl();
      if (device.sizes() == host.sizes() && device.strides() == host.strides() && device.storage().data() == host.storage().data()) continue;
      if (device.storage().data() != host.storage().data()) impl->set_storage_keep_dtype(storage_over(host.storage(), kDevice, &device_memory));
      impl->set_storage_offset(host.storage_offset());
      impl->set_sizes_and_strides(host.sizes(), host.strides());
    }
  }

 private:
  static Tensor marked(Tensor tensor, const Tensor& like) {
    tensor._set_conj(like.is_conj());
    tensor._set_neg(like.is_neg());
    return tensor;
  }
  std::vector<std::pair<Tensor, Tensor>> pairs_;
};

// ---- every operation that has no kernel below

struct Operands {
  bool device = false;                // some tensor is on the device
  bool by_mask = false;               // some index is a mask
  std::vector<Tensor> host;           // tensors on the host
  std::vector<std::vector<Tensor>> lists;

  void look(const Tensor& tensor) {
    if (!tensor.defined()) return;
    if (is_second(tensor)) device = true;
    else host.push_back(tensor);
  }
};

IValue moved(const IValue& value, OnHost& on_host, Operands& operands) {
  if (value.isTensor()) {
    operands.look(value.toTensor());
    return on_host(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<Tensor> result;
    std::vector<Tensor> list = value.toTensorVector();
    for (const Tensor& tensor : list) {
      operands.look(tensor);
      result.push_back(on_host(tensor));
    }
    operands.lists.push_back(std::move(list));
    return result;
  }
  if (value.isOptionalTensorList()) {  // indices
    c10::List<std::optional<Tensor>> result;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      if (tensor && tensor->defined()) {
        operands.look(*tensor);
        operands.by_mask = operands.by_mask || tensor->scalar_type() == at::kBool || tensor->scalar_type() == at::kByte;
        result.push_back(on_host(*tensor));
      } else {
        result.push_back(std::nullopt);
      }
    }
    return result;
  }
  if (value.isDevice() && value.toDevice().type() == kSecond) {
    operands.device = true;
    return c10::Device(c10::kCPU);
  }
  return value;
}

// A number of the host is an argument of the kernel. CUDA copies indices to the device itself, waiting; all else it refuses.
void check_devices(const std::string& name, const Operands& operands) {
  if (!operands.device) return;
  const bool indexing = name.find("index") != std::string::npos;
  for (const Tensor& tensor : operands.host) {
    if (indexing && tensor.numel()) note("to device, waiting", name, tensor.numel() * tensor.element_size());
    TORCH_CHECK(indexing || tensor.dim() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, second:0 and cpu! (", name, ")");
  }
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d) || (a.size(d) != 1 && a.stride(d) != b.stride(d))) return false;
  return a.dim() == b.dim();
}

void check_fused(const std::string& name, const std::vector<std::vector<Tensor>>& lists) {
  if (name.rfind("aten::_fused_", 0) != 0) return;
  for (size_t list = 1; list < lists.size(); ++list)
    for (size_t i = 0; i < std::min(lists[0].size(), lists[list].size()); ++i)
      TORCH_CHECK(lists[list][i].dim() == 0 || same_layout(lists[0][i], lists[list][i]), name, ": list ", list, ", tensor ", i,
                  ": must have the dtype, device and layout of the parameter; strides ", lists[list][i].strides(), " and ",
                  lists[0][i].strides());
}

// The operand that an output of the schema stands for: operations in place return what they were given.
int operand_of(const c10::FunctionSchema& schema, size_t output) {
  const auto* written = schema.returns()[output].alias_info();
  if (!written || !written->isWrite()) return -1;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* info = schema.arguments()[i].alias_info();
    if (info && info->isWrite() && *info == *written) return static_cast<int>(i);
  }
  return -1;
}

void run_on_host(const c10::OperatorHandle& operation, Stack* stack) {
  const auto& schema = operation.schema();
  const std::string& name = schema.operator_name().name;
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  std::vector<IValue> given(stack->begin() + first, stack->end());
  OnHost on_host;
  Operands operands;
  for (size_t i = 0; i < count; ++i) (*stack)[first + i] = moved(given[i], on_host, operands);

  check_devices(name, operands);
  check_fused(name, operands.lists);
  if (kWaiting.count(name) || operands.by_mask) note("wait", name);
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  on_host.settle();

  const size_t outputs = schema.returns().size(), begin = stack->size() - outputs;
  for (size_t i = 0; i < outputs; ++i) {
    IValue& value = (*stack)[begin + i];
    const int operand = operand_of(schema, i);
    if (operand >= 0) {
      value = given[operand];
    } else if (value.isTensor()) {
      value = on_host.back(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> results;
      for (const Tensor& tensor : value.toTensorVector()) results.push_back(on_host.back(tensor));
      value = results;
    }
  }
}

// ---- kernels that every device must have

Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<c10::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool asynchronous) {
  note_copy(target, source, asynchronous, "aten::copy_");
  OnHost on_host;
  on_host(target).copy_(on_host(source));
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

at::Scalar read_scalar(const Tensor& tensor) {
  note("wait", "aten::item");
  return at::_local_scalar_dense(OnHost()(tensor));
}

const Tensor& resize(const Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  const size_t bytes = (tensor.numel() + tensor.storage_offset()) * tensor.element_size();
  if (tensor.storage().nbytes() < bytes) grow(tensor.storage(), bytes);
  return tensor;
}

Tensor& set_storage(Tensor& tensor, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  impl->set_sizes_and_strides(size, stride);
  return tensor;
}

// Convolutions have a key of their own for devices that torch does not know, so `run_on_host` never sees them.
void check_convolution(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    TORCH_CHECK(is_second(tensor) || !tensor.defined(),
                "Expected all tensors to be on the same device, but found at least two devices, second:0 and cpu! (convolution)");
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding, int64_t groups) {
  check_convolution({input, weight, bias.value_or(Tensor())});
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "Input type (", input.dtype(), ") and weight type (", weight.dtype(), ") should be the same");
  OnHost on_host;
  std::optional<Tensor> offset;
  if (bias && bias->defined()) offset = on_host(*bias);
  return on_host.back(at::convolution(
      on_host(input), on_host(weight), offset, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  check_convolution({gradient, input, weight});
  OnHost on_host;
  const int64_t channels = transposed ? weight.size(1) * groups : weight.size(0);
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      on_host(gradient), on_host(input), on_host(weight), at::OptionalIntArrayRef({channels}), stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {on_host.back(of_input), on_host.back(of_weight), on_host.back(of_bias)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", read_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

// Copies take conjugate and negative views as they are: what resolves them is a copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

}  // namespace

namespace at::autocast {
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define SECOND_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SECOND_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define SECOND_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(SECOND_LOWER)
  AT_FORALL_FP32(SECOND_FP32)
  AT_FORALL_PROMOTE(SECOND_PROMOTE)
}
}  // namespace at::autocast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("observe", [](py::function function) { observer = function.release().ptr(); });
}
