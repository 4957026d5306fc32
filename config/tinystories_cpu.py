# TinyStories on a laptop without a GPU: 2.6M parameters, 12M tokens.
#   python prepare.py --dataset=tinystories --vocab_size=4096        1.9 GB download
#   python train.py config/tinystories_cpu.py
# Without the download: any folder laid out like the dataset, --dataset=FOLDER --name=tinystories.
# Needs: 1.1 GB of memory, 20 minutes on two cores (from its first steps), 1 on a T4 (computed). On 960 of
# the stories it came to 1.21 bits per byte in 300 steps, and wrote: One day, a little boy named Tim saw a
# big, red car. He wanted to go to the house with his toys and have fun. He went to the park to play with his
# toys. All of them, and 3,000 steps, make stories with a plot, but not always a point.
out_dir = 'out/tinystories_cpu'
dataset = 'tinystories'
n_layer, n_head, n_embd = 4, 4, 192
head_gain = 1.0
block_size = 256
batch_size = 16
max_iters = 3000
learning_rate = 4e-3
decay_fraction = 0.6
eval_interval = 500
eval_tokens = 200_000
compile = True              # pays after a minute or two; without a C++ compiler it warns and goes on
