"""The encoder of both stages and the augmentation discriminator of Stage I."""

from torch import Tensor, nn

from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel
from shared.models.speaker_encoder import SpeakerEncoder
from shared.precision import compile_methods
from shared.weight_files import load_weights


def encoder_of(args, weights=None, width=None):
    """The ECAPA-TDNN of `args`; `weights` bring their own C, `width` replaces it."""
    if weights is not None:
        width = len(weights['stem.conv.weight'])
    network = EcapaTdnn(
        width=width or args['width'],
        mfa_width=args['mfa_width'],
        attention_width=args['attention_width'],
        se_width=args['se_width'],
        dim=args['embed_size'],
    )
    if weights is not None:
        load_weights(network, weights, 'encoder')
    if args['compile']:
        compile_methods(network, 'forward')
    return SpeakerEncoder(LogMel(), network).to(args['device'])


class AugmentationDiscriminator(nn.Module):
    """Tells whether two embeddings come from equally augmented crops (AAT, Huh et al. 2020).

    Layers as in spec lgl 4.2: BN, ReLU, linear, BN, ReLU, linear; 199,938 parameters at D = 192.

    Args:
        dim: D of one embedding.
        hidden: width of the hidden layer.
    """

    def __init__(self, dim: int = 192, hidden: int = 512):
        super().__init__()
        self.input_norm = nn.BatchNorm1d(2 * dim)
        self.hidden = nn.Linear(2 * dim, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, 2)

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores pairs (B, 2D), two embeddings side by side, as (B, 2): different, same."""
        x = self.hidden(self.input_norm(pairs).relu())
        return self.output(self.hidden_norm(x).relu())
