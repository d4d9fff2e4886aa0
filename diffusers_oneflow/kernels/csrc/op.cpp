// Registers every kernel of the pack with OneFlow, as an op of its own.
#include "op.h"

#include "kernel.h"
#include "oneflow/core/framework/framework.h"
#include "queue.h"
#include "recorder.h"
#include "registration.h"

namespace dfo {
namespace {

using oneflow::DataType;
using oneflow::Maybe;
using oneflow::Shape;
namespace user_op = oneflow::user_op;

const math::Table* table = nullptr;
const math::Products* products = nullptr;

struct State final : user_op::OpKernelState {
  std::string name;
  After after;
  std::shared_ptr<Kernel> kernel;
};

class PackKernel final : public user_op::OpKernel {
 public:
  explicit PackKernel(MakeKernel make) : make_(make) {}

  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* ctx) const override {
    auto state = std::make_shared<State>();
    state->name = ctx->op_name();
    state->after = static_cast<After>(ctx->Attr<int64_t>("after"));
    state->kernel = make_(Params(ctx->Attr<std::vector<int64_t>>("params")));
    return state;
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx, user_op::OpKernelState* state, const user_op::OpKernelCache*) const override {
    auto* mine = static_cast<State*>(state);
    Buffers buffers;
    const int32_t count = ctx->input_size("in");
    buffers.in.reserve(count);
    for (int32_t i = 0; i < count; ++i) { buffers.in.push_back(ctx->Tensor4ArgNameAndIndex("in", i)->dptr()); }
    buffers.out = ctx->Tensor4ArgNameAndIndex("out", 0)->mut_dptr();
    Queue([kernel = mine->kernel.get(), buffers = std::move(buffers)] { kernel->Run(buffers); }, mine->name, mine->after);
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }

  MakeKernel make_;
};

Maybe<void> InferShape(user_op::InferContext* ctx) {
  ctx->SetOutputShape("out", 0, ctx->Attr<Shape>("shape"));
  return Maybe<void>::Ok();
}

Maybe<void> InferType(user_op::InferContext* ctx) {
  ctx->SetOutputDType("out", 0, ctx->Attr<DataType>("dtype"));
  return Maybe<void>::Ok();
}

Maybe<void> Whole(user_op::SbpContext* ctx) {
  ctx->NewBuilder().Broadcast(ctx->inputs()).Broadcast(ctx->outputs()).Build();
  return Maybe<void>::Ok();
}

Maybe<void> Register(const KernelKind& kind) {
  auto& manager = user_op::UserOpRegistryMgr::Get();
  JUST(RegisterOp(kind.name));
  auto kernel = manager.CheckAndGetOpKernelRegistry(kind.name);
  const MakeKernel make = kind.make;
  kernel.SetCreateFn([make]() -> const user_op::OpKernel* { return user_op::NewOpKernel<PackKernel>(make); })
      .SetIsMatchedHob(user_op::HobDeviceType() == oneflow::DeviceType::kCPU);
  JUST(manager.Register(JUST(kernel.Finish()).GetResult()));
  return Maybe<void>::Ok();
}

}  // namespace

Maybe<void> RegisterOp(const char* name) {
  auto& manager = user_op::UserOpRegistryMgr::Get();
  auto op = manager.CheckAndGetOpRegistry(name);
  op.Input("in")
      .Output("out")
      .Attr<std::vector<int64_t>>("params")
      .Attr<Shape>("shape")
      .Attr<DataType>("dtype")
      .Attr<int64_t>("after", 0)
      .SetTensorDescInferFn(InferShape)
      .SetDataTypeInferFn(InferType)
      .SetGetSbpFn(Whole);
  return manager.Register(JUST(op.Finish()).GetResult());
}

const math::Table& Math() { return *table; }

const math::Products& ProductsMath() { return *products; }

void SetMath(const math::Table* found, const math::Products* found_products) {
  table = found;
  products = found_products;
}

std::vector<std::string> RegisterKernels() {
  std::vector<std::string> names;
  for (const auto& kinds : {TorchKernels(), ProductKernels(), MathKernels()}) {
    for (const KernelKind& kind : kinds) {
      if (!Register(kind).IsOk()) { return {}; }
      names.push_back(kind.name);
    }
  }
  if (!RegisterRecorded()) { return {}; }
  names.push_back(kRecordedOp);
  return names;
}

}  // namespace dfo
