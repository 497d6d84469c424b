"`python -m mulan_vdm` is the command `mulan-vdm`."
import sys
from .cli import main

if __name__ == '__main__': sys.exit(main())
