# Shakespeare, character by character, on a GPU: 10.6M parameters. nanoGPT ends at 1.4697 with this size.
#   python prepare.py --input=tinyshakespeare.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_char.py
# Needs: 2.8 GB for 32 sequences at once. 2.7 hours on two CPU cores (from its first steps), at least 2
# minutes on a T4 (computed). Its loss is not measured yet.
out_dir = 'out/shakespeare_char'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 6, 6, 384
block_size = 256
dropout = 0.3
batch_size = 64
max_iters = 1500
learning_rate = 2e-3
weight_decay = 0.2
warmup_iters = 50
eval_interval = 250
