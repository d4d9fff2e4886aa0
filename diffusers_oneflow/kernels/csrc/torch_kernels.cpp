// What torch's libraries compute, through its C interface: convolutions and linear layers of half types and in groups
// (oneDNN), and attention.
#include <algorithm>

#include "kernel.h"
#include "torch_c.h"

namespace dfo {
namespace {

using torch_c::Check;
using torch_c::Get;
using torch_c::Handle;
using torch_c::Tensor;

// torch's name of an activation that oneDNN applies as it stores: attr and algorithm.
struct Pointwise {
  const char* attr = "none";
  const char* algorithm = nullptr;

  explicit Pointwise(Act act) {
    switch (act) {
      case Act::kNone: break;
      case Act::kRelu: attr = "relu"; break;
      case Act::kSigmoid: attr = "sigmoid"; break;
      case Act::kTanh: attr = "tanh"; break;
      case Act::kSilu: attr = "swish"; break;
      case Act::kGelu: attr = "gelu", algorithm = "none"; break;
      case Act::kGeluTanh: attr = "gelu", algorithm = "tanh"; break;
      default: throw std::invalid_argument("an activation that oneDNN does not have");
    }
  }
  static bool Knows(Act act) { return act != Act::kQuickGelu; }
  const char** Algorithm() { return algorithm == nullptr ? nullptr : &algorithm; }
};

// torch's functions return memory of their own, and OneFlow's consumers read this graph's: as long as a result is
// copied anyway, what follows it is computed on the way. out = after(made + residual), of `count` elements.
void Finish(const Tensor& made, const void* residual, Act after, Type type, int64_t count, void* out) {
  if (residual == nullptr && after == Act::kNone) {
    const int64_t bytes = count * SizeOf(type), stride = 1;
    Math().copy(1, made.data(), out, 1, &bytes, &stride);
    return;
  }
  const math::Operand operands[] = {{made.data(), type, {1}}, {residual, type, {1}}};
  const bool adds = residual != nullptr;
  const math::Instruction instructions[] = {{math::Code::kAdd, 0, 1, 0.0f},
                                            {math::Code::kAct, adds ? 2 : 0, 0, static_cast<float>(after)}};
  math::Chain chain{};
  chain.operands = operands;
  chain.operand_count = adds ? 2 : 1;
  chain.instructions = adds ? instructions : instructions + 1;
  chain.instruction_count = adds && after != Act::kNone ? 2 : 1;
  chain.ndim = 1;
  chain.sizes[0] = count;
  chain.y = out;
  chain.y_type = type;
  Math().chain(chain);
}

// ints: n, h, w, c, oc, oh, ow, stride[], padding[], dilation[], groups, weight slot, bias slot or -1, act, type,
// whether the second input is added before the activation. Images are channels last in memory.
class Convolution final : public Kernel {
 public:
  explicit Convolution(Params p)
      : n_(p.Int()), h_(p.Int()), w_(p.Int()), c_(p.Int()), oc_(p.Int()), oh_(p.Int()), ow_(p.Int()), stride_(p.Ints()),
        padding_(p.Ints()), dilation_(p.Ints()), groups_(p.Int()), weight_(p.Int()), bias_(p.Int()), act_(p.Act()),
        type_(p.Type()), adds_(p.Int() != 0) {}

  void Run(const Buffers& b) override {
    const Tensor x(b.in[0], type_, {n_, c_, h_, w_}, {h_ * w_ * c_, 1, w_ * c_, c_});
    Handle bias = bias_ < 0 ? nullptr : torch_c::Slot(bias_);
    const bool fused = !adds_ && Pointwise::Knows(act_);
    Pointwise act(fused ? act_ : Act::kNone);
    Tensor made;
    Check(Get().convolution(x.get(), torch_c::Slot(weight_), bias == nullptr ? nullptr : &bias, padding_.data(), 2,
                            stride_.data(), 2, dilation_.data(), 2, groups_, act.attr, nullptr, 0, act.Algorithm(), made.out()),
          "the convolution");
    Finish(made, adds_ ? b.in[1] : nullptr, fused ? Act::kNone : act_, type_, n_ * oh_ * ow_ * oc_, b.out);
  }

 private:
  int64_t n_, h_, w_, c_, oc_, oh_, ow_;
  std::vector<int64_t> stride_, padding_, dilation_;
  int64_t groups_, weight_, bias_;
  Act act_;
  Type type_;
  bool adds_;
};

// ints: rows, in features, out features, weight slot, bias slot or -1, act, type, whether the second input is added
// (after the activation).
class Linear final : public Kernel {
 public:
  explicit Linear(Params p)
      : rows_(p.Int()), in_(p.Int()), out_(p.Int()), weight_(p.Int()), bias_(p.Int()), act_(p.Act()), type_(p.Type()),
        adds_(p.Int() != 0) {}

  void Run(const Buffers& b) override {
    const Tensor x(b.in[0], type_, {rows_, in_}, {in_, 1});
    Handle bias = bias_ < 0 ? nullptr : torch_c::Slot(bias_);
    Pointwise act(Pointwise::Knows(act_) ? act_ : Act::kNone);
    Tensor made;
    Check(Get().linear(x.get(), torch_c::Slot(weight_), bias == nullptr ? nullptr : &bias, act.attr, nullptr, 0, act.Algorithm(),
                       made.out()),
          "the linear layer");
    Finish(made, adds_ ? b.in[1] : nullptr, Pointwise::Knows(act_) ? Act::kNone : act_, type_, rows_ * out_, b.out);
  }

 private:
  int64_t rows_, in_, out_, weight_, bias_;
  Act act_;
  Type type_;
  bool adds_;
};

// q (b, m, heads * d), k and v (b, n, heads * d) -> (b, m, heads * d), by torch's flash attention or, if kOwn, by the pack's
// own; that leaves to torch what is not finite.
// ints: b, m, n, heads, d, strides of q, k and v as (batch, token, head) each, causal, scale, type, mask's sizes and
// strides (none without a mask; then the fourth input is the mask).
template <bool kOwn>
class Attention final : public Kernel {
 public:
  explicit Attention(Params p)
      : b_(p.Int()), m_(p.Int()), n_(p.Int()), heads_(p.Int()), d_(p.Int()), q_(p.Ints()), k_(p.Ints()), v_(p.Ints()),
        causal_(p.Int() != 0), scale_(p.Float()), type_(p.Type()), mask_sizes_(p.Ints()), mask_strides_(p.Ints()) {}

  void Run(const Buffers& b) override {
    if (kOwn && RunOwn(b)) { return; }
    const Tensor q = Heads(b.in[0], m_, q_), k = Heads(b.in[1], n_, k_), v = Heads(b.in[2], n_, v_);
    Tensor mask, made, logsumexp;
    Handle mask_handle = nullptr;
    if (!mask_sizes_.empty()) {
      mask = Tensor(b.in[3], type_, mask_sizes_, mask_strides_);
      mask_handle = mask.get();
    }
    double scale = scale_;
    Check(Get().attention(q.get(), k.get(), v.get(), 0.0, causal_, mask_handle == nullptr ? nullptr : &mask_handle, &scale,
                          made.out(), logsumexp.out()),
          "the attention");
    // Its result lies in memory as (b, m, heads, d).
    Finish(made, nullptr, Act::kNone, type_, b_ * m_ * heads_ * d_, b.out);
  }

 private:
  bool RunOwn(const Buffers& b) const {
    const auto data = [&](size_t i) { return static_cast<const float*>(b.in[i]); };
    const bool masked = !mask_sizes_.empty();
    math::AttentionCall call{data(0), data(1), data(2), masked ? data(3) : nullptr, static_cast<float*>(b.out), b_, m_,
                             n_,      heads_,  d_};
    std::copy_n(q_.data(), 3, call.q_strides);
    std::copy_n(k_.data(), 3, call.k_strides);
    std::copy_n(v_.data(), 3, call.v_strides);
    if (masked) { std::copy_n(mask_strides_.data(), 4, call.mask_strides); }
    call.causal = causal_;
    call.scale = static_cast<float>(scale_);
    return ProductsMath().attention(call);
  }

  Tensor Heads(const void* data, int64_t tokens, const std::vector<int64_t>& strides) const {
    return Tensor(data, type_, {b_, heads_, tokens, d_}, {strides[0], strides[2], strides[1], 1});
  }

  int64_t b_, m_, n_, heads_, d_;
  std::vector<int64_t> q_, k_, v_;
  bool causal_;
  double scale_;
  Type type_;
  std::vector<int64_t> mask_sizes_, mask_strides_;
};

}  // namespace

std::vector<KernelKind> TorchKernels() {
  return {{"dfo_onednn_convolution", Make<Convolution>},
          {"dfo_onednn_linear", Make<Linear>},
          {"dfo_flash_attention", Make<Attention<false>>},
          {"dfo_attention", Make<Attention<true>>}};
}

}  // namespace dfo
