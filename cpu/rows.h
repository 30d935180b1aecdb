// The fast ops that work on rows: everything but matrix products and attention. Arguments are
// validated by the caller; the contracts are those of ops/.
#pragma once

#include "cpu/thread_pool.h"
#include "ops/elementwise.h"
#include "ops/exchange.h"
#include "ops/mla.h"
#include "ops/moe.h"

namespace jevons::fast {

void Embed(const EmbedArgs& args, ThreadPool& pool);
void RmsNorm(const RmsNormArgs& args, ThreadPool& pool);
void SiluMul(const SiluMulArgs& args, ThreadPool& pool);
void Rope(const RopeArgs& args, ThreadPool& pool);
void GatherRows(const GatherRowsArgs& args, ThreadPool& pool);
void PackRows(const PackRowsArgs& args, ThreadPool& pool);
void UnpackRows(const UnpackRowsArgs& args, ThreadPool& pool);
void MlaStoreKv(const MlaStoreKvArgs& args, ThreadPool& pool);
void RouteTopK(const RouteTopKArgs& args, ThreadPool& pool);
void ExpertDispatch(const ExpertDispatchArgs& args, ThreadPool& pool);
void ExpertCombine(const ExpertCombineArgs& args, ThreadPool& pool);
// Too small to share among threads.
void RankDispatch(const RankDispatchArgs& args);
void ReturnRows(const ReturnRowsArgs& args);

}  // namespace jevons::fast
