# Shakespeare, character by character, on a CPU: 0.8M parameters, the size of nanoGPT's CPU example.
#   python prepare.py --input=tinyshakespeare.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_cpu.py
# Needs: two cores and half a minute.
out_dir = 'out/shakespeare_cpu'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 4, 4, 128
block_size = 64
batch_size = 12
max_iters = 600
eval_interval = 200
learning_rate = 4e-3
