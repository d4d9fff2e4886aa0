// Puts ops of the pack into graphs: OneFlow's Python has functions for its own ops only.
//
// The wheel lacks some of the headers that OneFlow's op_expr.h and op_interpreter_util.h include, so the few
// names that are needed of them are declared here, as they are in 0.9.0.
#include "node.h"

#include <memory>

#include "oneflow/core/common/maybe.h"
#include "oneflow/core/common/shape.h"
#include "oneflow/core/framework/tensor_tuple.h"
#include "oneflow/core/framework/user_op_conf.pb.h"

namespace oneflow {
namespace one {

class OpExpr;
class UserOpExpr;  // derived from OpExpr alone, at the same address

class OpBuilder {
 public:
  explicit OpBuilder(const std::string& op_type_name);
  virtual ~OpBuilder() = default;
  OpBuilder& Input(const std::string& input_name, const int count);
  OpBuilder& Output(const std::string& output_name, const int count);
  template <typename T>
  OpBuilder& Attr(const std::string& attr_name, const T& attr_value);
  Maybe<UserOpExpr> Build();

 private:
  std::string op_name_;
  UserOpConf proto_;
  int input_pos_ = 0;
  std::vector<std::string> indexed_ibns_;
  std::vector<std::string> indexed_obns_;
};

class OpInterpUtil {
 public:
  template <typename T>
  static Maybe<T> Dispatch(const OpExpr& op_expr, const TensorTuple& inputs);
};

}  // namespace one
}  // namespace oneflow

namespace dfo {
namespace {

using oneflow::Maybe;
namespace one = oneflow::one;

Maybe<void> Add(const std::string& kind, one::TensorTuple* tuple, const std::vector<int64_t>& shape, int64_t dtype,
                const std::vector<int64_t>& params) {
  one::OpBuilder builder(kind);
  builder.Input("in", static_cast<int>(tuple->size()))
      .Output("out", 1)
      .Attr("params", params)
      .Attr("shape", oneflow::Shape(oneflow::DimVector(shape.begin(), shape.end())))
      .Attr("dtype", static_cast<oneflow::DataType>(dtype))
      .Attr("after", int64_t{0});
  const auto expression = JUST(builder.Build());
  const auto& op = reinterpret_cast<const one::OpExpr&>(*expression);
  tuple->push_back(JUST(one::OpInterpUtil::Dispatch<one::Tensor>(op, *tuple)));
  return Maybe<void>::Ok();
}

}  // namespace

std::string AddNode(const std::string& kind, void* tuple, const std::vector<int64_t>& shape, int64_t dtype,
                    const std::vector<int64_t>& params) {
  const auto result = Add(kind, static_cast<one::TensorTuple*>(tuple), shape, dtype, params);
  return result.IsOk() ? "" : "OneFlow refuses the op " + kind + ": " + result.GetSerializedError();
}

}  // namespace dfo
