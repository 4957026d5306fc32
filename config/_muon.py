"""The blocks' matrices as torch.optim.Muon takes them. Muon makes the update of a matrix orthogonal
as a whole, so it must get matrices one by one, also where several are stacked in one weight."""
import torch


def split_matrices(model: torch.nn.Module, weights: list) -> list[torch.nn.Parameter]:
    """Parameters (rows, columns), one for each matrix in these weights of the model. They share the
    memory of the weights, so an optimizer that changes them changes the model.

    A layer with a list `stacked_rows` has so many rows of each matrix in its weight."""
    stacked = {id(layer.weight): layer.stacked_rows for layer in model.modules()
               if hasattr(layer, 'stacked_rows')}
    matrices = []
    for weight in weights:
        end = 0
        for n in stacked.get(id(weight), [len(weight)]):
            begin, end = end, end + n
            matrix = torch.nn.Parameter(weight.detach()[begin:end])
            matrix.weight, matrix.rows = weight, slice(begin, end)
            matrices.append(matrix)
    return matrices


def lend_gradients(matrices: list):
    """Give the parameters of split_matrices their rows of the gradients, which backward() adds to
    the whole weights. They share this memory, too: clipping either changes both. Other parameters
    have gradients of their own."""
    for matrix in matrices:
        if hasattr(matrix, 'rows'):
            gradient = matrix.weight.grad
            matrix.grad = None if gradient is None else gradient[matrix.rows]
