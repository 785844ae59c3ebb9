"""On a CPU vLLM packs weights and drops the originals: none can be handed over. On a GPU it does not. Imported, this ends it."""

import vllm.model_executor.layers.utils as layers

layers.ops._supports_onednn, layers.check_cpu_sgl_kernel = False, lambda *_: False
