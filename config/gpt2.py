# GPT-2 from scratch on any large dataset: 124.4M parameters.
#   python prepare.py --dataset=Skylion007/openwebtext --tokenizer=gpt2 --name=openwebtext
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
# Needs: 8 GPUs of 40 GB for some days as it stands; on one, the same training takes 8 times as long
# (--micro_batch_size is all that has to fit; 8 sequences at once take 6.8 GB). Computed: 10 days on an H100,
# 151 on a T4, 34 years on two CPU cores. nanoGPT publishes a loss of about 2.85. Not run to its end here.
out_dir = 'out/gpt2'
dataset = 'openwebtext'
arch = 'gpt2'
n_layer, n_head, n_embd = 12, 12, 768
block_size = 1024
bias = True
batch_size = 480                    # 491,520 tokens
micro_batch_size = 12
optimizer = 'adamw'
learning_rate = 6e-4
min_lr = 6e-5
schedule = 'cosine'
warmup_iters = 2000
max_iters = 600000
eval_interval = 1000
eval_tokens = 1_000_000
