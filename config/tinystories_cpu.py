# TinyStories on a laptop without a GPU: 2.6M parameters, 12M tokens.
#   python prepare.py --dataset=tinystories --vocab_size=4096        1.9 GB download
#   python train.py config/tinystories_cpu.py
# Without the download: any folder laid out like the dataset, --dataset=FOLDER --name=tinystories.
# Needs: 0.7 GB of memory, 12 minutes on two cores (from its first steps), 1 on a T4 (computed). On 960 of
# the stories it came to 1.18 bits per byte in 300 steps, and wrote: Once upon a time, there was a little girl
# named Lily. She loved to play with her toys and she loved to play with her toys, but one day, her mom said
# no. All of the stories, and 3,000 steps, were not tried here.
out_dir = 'out/tinystories_cpu'
dataset = 'tinystories'
n_layer, n_head, n_embd = 4, 4, 192
block_size = 256
batch_size = 16
max_iters = 3000
learning_rate = 4e-3
decay_fraction = 0.6
eval_interval = 500
eval_tokens = 200_000
compile = True              # pays after a minute or two; without a C++ compiler it warns and goes on
