# Shakespeare, character by character, on a CPU: 0.8M parameters, fewer than nanoGPT's CPU example has.
#   python prepare.py --input=tinyshakespeare.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_cpu.py
# Needs: two cores, 0.4 GB and 10 to 20 seconds for what that example reaches in 2,000 steps: val 1.89.
# It writes: ROMEO: / My day, conder prightis to my deepon perraties: / That, the placed all and her her in
out_dir = 'out/shakespeare_cpu'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 3, 3, 144
block_size = 64
batch_size = 12
warmup_iters = 15
max_iters = 310
eval_interval = 155
learning_rate = 4.5e-3
