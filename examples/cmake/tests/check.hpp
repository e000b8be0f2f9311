// The least that a test needs: say what differs and where, and count.
#pragma once
#include <iostream>

inline int failures = 0;

template <typename A, typename B>
void check_equal(const A& found, const B& expected, const char* file, int line) {
  if (found == expected) return;
  std::cerr << file << ":" << line << ": found " << found << ", expected " << expected << "\n";
  ++failures;
}

#define CHECK_EQUAL(found, expected) check_equal((found), (expected), __FILE__, __LINE__)
