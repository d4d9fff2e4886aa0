// Convolutions and linear layers in float32: math/product.h, on weights in slots.
#include <stdexcept>

#include "kernel.h"
#include "math/product.h"
#include "torch_c.h"

namespace dfo {
namespace {

// A slot's memory; null for -1.
const float* Data(int64_t slot) {
  if (slot < 0) { return nullptr; }
  void* pointer = nullptr;
  torch_c::Check(torch_c::Get().get_data_ptr(torch_c::Slot(slot), &pointer), "the address of a weight");
  return static_cast<const float*>(pointer);
}

// ints: batch, h, w, oh, ow, stride[2], padding[2], dilation[2], filter's n, c, kh, kw and strides [4] without a length,
// slots of the weight, of its packed copy and of the bias (-1: none), act, whether it comes before the addition, gate,
// whether the second input is added.
class Multiply final : public Kernel {
 public:
  explicit Multiply(Params p) {
    math::Product& q = product_;
    for (int64_t* value : {&q.batch, &q.h, &q.w, &q.oh, &q.ow}) { *value = p.Int(); }
    for (auto* pair : {&q.stride, &q.padding, &q.dilation}) { (*pair)[0] = p.Int(), (*pair)[1] = p.Int(); }
    for (int64_t* value : {&q.filter.n, &q.filter.c, &q.filter.kh, &q.filter.kw}) { *value = p.Int(); }
    for (int64_t& stride : q.filter.strides) { stride = p.Int(); }
    weight_ = p.Int(), packed_ = p.Int(), bias_ = p.Int();
    q.act = p.Act();
    q.act_first = p.Int() != 0;
    q.gate = p.Act();
    adds_ = p.Int() != 0;
  }

  void Run(const Buffers& b) override {
    math::Product product = product_;
    product.x = static_cast<const float*>(b.in[0]);
    product.filter.data = Data(weight_);
    product.packed = Data(packed_);
    product.bias = Data(bias_);
    product.residual = adds_ ? static_cast<const float*>(b.in[1]) : nullptr;
    product.y = static_cast<float*>(b.out);
    if (!ProductsMath().run(product)) { throw std::runtime_error("out of memory"); }
  }

 private:
  math::Product product_{};
  int64_t weight_, packed_, bias_;
  bool adds_;
};

}  // namespace

std::vector<KernelKind> ProductKernels() { return {{"dfo_convolution", Make<Multiply>}, {"dfo_linear", Make<Multiply>}}; }

}  // namespace dfo
