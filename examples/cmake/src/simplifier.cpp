#include "reckon/simplifier.hpp"

#include "reckon/environment.hpp"
#include "reckon/evaluator.hpp"

namespace reckon {
namespace {

bool constant(const Expression& e) { return std::holds_alternative<Number>(e->is); }

Expression sum(const Expression& left, const Expression& right) {
  if (is_number(left, 0)) return right;
  if (is_number(right, 0)) return left;
  return equal(left, right) ? binary('*', number(2), left) : binary('+', left, right);
}

Expression difference(const Expression& left, const Expression& right) {
  if (is_number(right, 0)) return left;
  if (is_number(left, 0)) return negative(right);
  return equal(left, right) ? number(0) : binary('-', left, right);
}

Expression product(const Expression& left, const Expression& right) {
  if (is_number(left, 0) || is_number(right, 0)) return number(0);
  if (is_number(left, 1)) return right;
  if (is_number(right, 1)) return left;
  if (constant(right) && !constant(left)) return product(right, left);
  if (const auto* inner = std::get_if<Binary>(&right->is); inner && inner->sign == '*' && constant(left) && constant(inner->left))
    return product(simplify(binary('*', left, inner->left)), inner->right);
  return binary('*', left, right);
}

Expression power(const Expression& base, const Expression& exponent) {
  if (is_number(exponent, 0)) return number(1);
  return is_number(exponent, 1) ? base : binary('^', base, exponent);
}

struct Simplify {
  Expression operator()(const Number& n) const { return number(n.value); }
  Expression operator()(const Name& n) const { return name(n.text); }
  Expression operator()(const Negative& n) const {
    const Expression of = simplify(n.of);
    if (const auto* value = std::get_if<Number>(&of->is)) return number(-value->value);
    if (const auto* twice = std::get_if<Negative>(&of->is)) return twice->of;
    return negative(of);
  }
  Expression operator()(const Binary& b) const {
    const Expression left = simplify(b.left), right = simplify(b.right);
    if (constant(left) && constant(right)) return number(evaluate(binary(b.sign, left, right), Environment()));
    switch (b.sign) {
      case '+': return sum(left, right);
      case '-': return difference(left, right);
      case '*': return product(left, right);
      case '^': return power(left, right);
      default: return is_number(right, 1) ? left : binary('/', left, right);
    }
  }
  Expression operator()(const Call& c) const {
    std::vector<Expression> arguments;
    for (const auto& argument : c.arguments) arguments.push_back(simplify(argument));
    return call(c.function, arguments);
  }
};

}  // namespace

Expression simplify(const Expression& expression) { return std::visit(Simplify{}, expression->is); }

}  // namespace reckon
