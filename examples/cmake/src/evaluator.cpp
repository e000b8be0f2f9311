#include "reckon/evaluator.hpp"

#include <cmath>

#include "reckon/builtins.hpp"
#include "reckon/error.hpp"

namespace reckon {
namespace {

constexpr int deepest = 200;

struct Evaluate {
  const Environment& environment;
  int depth;

  double of(const Expression& e, int deeper = 0) const { return std::visit(Evaluate{environment, depth + deeper}, e->is); }

  double operator()(const Number& n) const { return n.value; }
  double operator()(const Negative& n) const { return -of(n.of); }
  double operator()(const Name& n) const {
    const Expression value = environment.get(n.text);
    if (!value) throw Error(0, "unknown name " + n.text);
    if (depth > deepest) throw Error(0, n.text + " leads in a circle");
    return of(value, 1);
  }
  double operator()(const Binary& b) const {
    const double left = of(b.left), right = of(b.right);
    switch (b.sign) {
      case '+': return left + right;
      case '-': return left - right;
      case '*': return left * right;
      case '/': return left / right;
      default: return std::pow(left, right);
    }
  }
  double operator()(const Call& c) const {
    const Builtin* known = builtin(c.function);
    if (!known) throw Error(0, "unknown function " + c.function);
    if (known->arity != c.arguments.size()) throw Error(0, c.function + " takes " + std::to_string(known->arity) + " arguments");
    std::vector<double> values;
    for (const auto& argument : c.arguments) values.push_back(of(argument));
    return known->apply(values);
  }
};

}  // namespace

double evaluate(const Expression& expression, const Environment& environment) {
  return std::visit(Evaluate{environment, 0}, expression->is);
}

}  // namespace reckon
