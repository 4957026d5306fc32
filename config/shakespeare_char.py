# Shakespeare by characters, on a GPU: 10.6M parameters. nanoGPT ends at a loss of 1.4697.
# The text is data/tinyshakespeare/input.txt in github.com/karpathy/char-rnn.
#   python prepare.py --input=input.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_char.py
# 32 sequences at once take 2.8 GB. On one GPU, a run that was cut off after step 1,400 had 1.4431
# at step 1,250.
out_dir = 'out/shakespeare_char'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 6, 6, 384
block_size = 256
dropout = 0.3
head_gain = 1.0
batch_size = 64
max_iters = 1500
learning_rate = 2e-3
decay_power = 1.0
weight_decay = 1.5                  # much, as the text is read 24 times
warmup_iters = 50
eval_interval = 250
