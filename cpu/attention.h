// The fast latent attention. Arguments are validated by the caller; the contract is that of
// ops/mla.h.
#pragma once

#include "cpu/thread_pool.h"
#include "ops/mla.h"

namespace jevons::fast {

void MlaAttention(const MlaAttentionArgs& args, ThreadPool& pool);

}  // namespace jevons::fast
