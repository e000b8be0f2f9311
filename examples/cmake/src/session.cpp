#include "reckon/session.hpp"

#include "reckon/derivative.hpp"
#include "reckon/error.hpp"
#include "reckon/evaluator.hpp"
#include "reckon/parser.hpp"
#include "reckon/printer.hpp"
#include "reckon/simplifier.hpp"

namespace reckon {

std::string Session::answer(const std::string& line) {
  const Statement statement = parse(line);
  if (statement.target) {
    const Expression value = simplify(statement.value);
    environment_.set(*statement.target, value);
    return *statement.target + " = " + print(value);
  }
  const auto* asked = std::get_if<Call>(&statement.value->is);
  if (asked && asked->function == "diff") {
    if (asked->arguments.size() != 2) throw Error(0, "diff takes an expression and a name");
    const auto* variable = std::get_if<Name>(&asked->arguments[1]->is);
    if (!variable) throw Error(0, "diff takes an expression and a name");
    return print(derivative(asked->arguments[0], variable->text));
  }
  return print(evaluate(statement.value, environment_));
}

}  // namespace reckon
