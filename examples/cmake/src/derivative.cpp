#include "reckon/derivative.hpp"

#include "reckon/error.hpp"
#include "reckon/simplifier.hpp"

namespace reckon {
namespace {

struct Derive {
  const std::string& variable;

  Expression of(const Expression& e) const { return std::visit(*this, e->is); }

  Expression operator()(const Number&) const { return number(0); }
  Expression operator()(const Name& n) const { return number(n.text == variable ? 1 : 0); }
  Expression operator()(const Negative& n) const { return negative(of(n.of)); }

  Expression operator()(const Binary& b) const {
    const Expression &l = b.left, &r = b.right;
    switch (b.sign) {
      case '+':
      case '-': return binary(b.sign, of(l), of(r));
      case '*': return binary('+', binary('*', of(l), r), binary('*', l, of(r)));
      case '/': return binary('/', binary('-', binary('*', of(l), r), binary('*', l, of(r))), binary('^', r, number(2)));
      default: break;
    }
    // (l ^ r)' = r l^(r-1) l' + l^r ln(l) r'
    const Expression along_base = binary('*', binary('*', r, binary('^', l, binary('-', r, number(1)))), of(l));
    const Expression along_exponent = binary('*', binary('*', binary('^', l, r), call("ln", {l})), of(r));
    return binary('+', along_base, along_exponent);
  }

  Expression operator()(const Call& c) const {
    if (c.arguments.size() != 1) throw Error(0, "cannot derive " + c.function);
    return binary('*', outer(c.function, c.arguments[0]), of(c.arguments[0]));
  }

  static Expression outer(const std::string& function, const Expression& x) {
    if (function == "sin") return call("cos", {x});
    if (function == "cos") return negative(call("sin", {x}));
    if (function == "exp") return call("exp", {x});
    if (function == "ln") return binary('/', number(1), x);
    if (function == "sqrt") return binary('/', number(1), binary('*', number(2), call("sqrt", {x})));
    throw Error(0, "cannot derive " + function);
  }
};

}  // namespace

Expression derivative(const Expression& expression, const std::string& variable) {
  return simplify(Derive{variable}.of(expression));
}

}  // namespace reckon
