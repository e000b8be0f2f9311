#include "reckon/environment.hpp"

#include <utility>

namespace reckon {

Environment::Environment() {
  set("pi", number(3.14159265358979323846));
  set("e", number(2.71828182845904523536));
}

void Environment::set(const std::string& name, Expression value) { values_[name] = std::move(value); }

Expression Environment::get(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : found->second;
}

}  // namespace reckon
