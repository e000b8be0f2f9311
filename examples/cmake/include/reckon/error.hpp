// The one error of the language. It carries the column, so that a caller can point at it.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

namespace reckon {

class Error : public std::runtime_error {
 public:
  Error(std::size_t column, const std::string& what);
  std::size_t column() const noexcept { return column_; }

 private:
  std::size_t column_;
};

// The text with a caret under the error's column.
std::string point_at(const std::string& text, const Error& error);

}  // namespace reckon
