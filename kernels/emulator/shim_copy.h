// Vector accesses, checked for alignment, and cp.async, which completes early or late as the scheduler pleases.
#pragma once

template <class V, class T>
inline V load_vec(const T* p, EMULATOR_SITE) {
  emulator::check_aligned(p, sizeof(V), "vector load", site);
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
inline void store_vec(T* p, V v, EMULATOR_SITE) {
  emulator::check_aligned(p, sizeof(V), "vector store", site);
  memcpy(p, &v, sizeof(V));
}

inline int computed_here(int x) { return x; }

inline void cp_async16(void* dst, const void* src, bool valid = true, EMULATOR_SITE) {
  emulator::cp_async(dst, src, 16, valid, site);
}
inline void cp_async16_cached(void* dst, const void* src, bool valid = true, EMULATOR_SITE) {
  emulator::cp_async(dst, src, 16, valid, site);
}
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int PENDING>
inline void cp_async_wait() { emulator::cp_async_wait(PENDING); }
